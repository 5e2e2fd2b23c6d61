"""Valid documents of every format, for tests that read or damage them."""

from typing import Any

PRESET: dict[str, Any] = {
    "name": "mine",
    "description": "of a test",
    "licence": "apache-2.0",
    "chunk_frames": 3,
    "schedule": {"steps": [1000, 500], "shift": 5.0, "warp": True},
    "native": "dense",
    "max_frames": 21,
    "start": "clip",
    "fps": 16,
    "size": [32, 48],
    "dummy": {"classify_at_chunk": 1, "neighbor_frames": 3, "dummy_fraction": 0.5},
}
CONFIG: dict[str, Any] = {
    "dim": 12,
    "ffn_dim": 24,
    "num_heads": 2,
    "num_layers": 3,
    "in_dim": 16,
    "out_dim": 16,
    "text_dim": 16,
    "text_len": 8,
    "freq_dim": 8,
}
CALIBRATION: dict[str, Any] = {
    "format": "dummyforcing teacache 1",
    "model": "mine",
    "fingerprint": "f",
    "schedule": {"steps": [1000, 750, 500], "shift": 5.0, "warp": True},
    "policy": "dense",
    "frames": 81,
    "size": [32, 48],
    "prompts": ["größer"],
    "seeds": [0],
    "error": 0.01,
    "sets": [{"steps": [1], "first": [], "later": [[0.005, 0.006]]}],
}
