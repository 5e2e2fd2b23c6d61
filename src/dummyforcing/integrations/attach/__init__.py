"""Head-wise memory for transformers and pipelines of public repositories, whose code stays as it is."""
