"""The nodes, one file for each thing that they do."""
