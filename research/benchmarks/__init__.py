"""Scripts that measure; each writes one JSON file for `benchmarks/results/`."""
