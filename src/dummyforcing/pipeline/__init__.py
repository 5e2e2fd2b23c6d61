"""From a prompt to pixel frames: the public API, checked requests, rollouts, memory estimates."""
