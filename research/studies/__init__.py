"""Quality studies of policies on the bundled models."""
