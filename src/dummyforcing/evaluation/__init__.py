"""Metrics of any video with known answers, sets of prompts, VBench, result files."""
