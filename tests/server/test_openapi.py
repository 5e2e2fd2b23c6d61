"""The OpenAPI of the server: schemathesis asks for everything in it, in right and in wrong ways."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dummyforcing.pipeline.pipeline import DummyForcingPipeline
from tests.server.serving import serving

CONFIG = """
[generation]
max-examples = 20
# What goes together, and what the model knows, no schema says: a request that it allows may be refused.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404", "429"]
"""


@pytest.mark.slow
def test_schemathesis_finds_no_fault(pipeline: DummyForcingPipeline, tmp_path: Path) -> None:
    """Of a server that makes short videos only, and few of them."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [os.path.join(os.path.dirname(sys.executable), "schemathesis"), "--config-file", str(config)]
    limits = {"max_frames": 9, "max_size": "160x160", "max_jobs": 5, "requests_per_minute": 10**9}
    with serving(pipeline, data=tmp_path / "data", **limits) as server:
        done = subprocess.run(
            [*command, "run", f"{server.url}/openapi.json", "--seed", "1", "--no-color"],
            capture_output=True,
            text=True,
            timeout=900,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stdout + done.stderr
