"""The rendered world that the bundled models show."""
