"""Training of the bundled models, from nothing."""
