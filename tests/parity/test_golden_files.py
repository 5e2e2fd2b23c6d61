"""Which golden files there are, and which have to wait."""

import pytest
from goldenfile import FILES, FOLDER, OWN_FOLDER, family

TESTED = {"schedules", "dhp", "self_forcing", "dummy_forcing"}
WAITING = {"longlive", "longlive_lora", "causvid", "rolling_forcing", "krea"}


def test_the_folder_holds_golden_files():
    found = {family(path) for path in FILES}
    assert found & TESTED, f"{FOLDER} holds no golden files"
    if FOLDER == OWN_FOLDER:
        assert found == TESTED | WAITING


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_family_is_known(path):
    name = family(path)
    if name in WAITING:
        pytest.skip(f"{name}: its sampler comes with the checkpoints work")
    assert name in TESTED
