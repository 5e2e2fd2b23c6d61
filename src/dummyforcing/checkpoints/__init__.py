"""Files of weights: found on disk or on the Hub, checked by name and shape, merged with LoRAs, converted."""
