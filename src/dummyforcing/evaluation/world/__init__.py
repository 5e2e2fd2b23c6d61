"""The rendered world of the bundled models: what its prompts say, and exact detectors of its videos."""
