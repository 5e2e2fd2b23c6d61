"""The causal Wan transformer and the text encoder; stateless, and without knowledge of files."""
