"""Dummy Forcing as a modular pipeline of diffusers; `block.py` has the blocks.

`FOLDER` is laid out as such a pipeline's repository, on disk or on the Hub:

    pipe = ModularPipeline.from_pretrained(FOLDER, trust_remote_code=True)
"""

from pathlib import Path

FOLDER = str(Path(__file__).parent)
"""Holds `block.py`, `modular_config.json` and `modular_model_index.json`."""
