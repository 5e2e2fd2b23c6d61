"""The transformer arranged for speed, CUDA graphs, CUDA streams, heads on several GPUs."""
