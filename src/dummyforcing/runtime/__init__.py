"""The transformer arranged for speed, CUDA graphs, CUDA streams."""
