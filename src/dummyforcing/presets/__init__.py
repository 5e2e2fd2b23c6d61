"""Named models as data, and the bundled models."""
