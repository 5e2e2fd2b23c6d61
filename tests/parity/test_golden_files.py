"""Which golden files there are."""

import pytest

from tests.parity.goldenfile import FILES, FOLDER, OWN_FOLDER, family

TESTED = {
    "schedules",
    "dhp",
    "self_forcing",
    "dummy_forcing",
    "longlive",
    "longlive_lora",
    "causvid",
    "rolling_forcing",
    "krea",
}


def test_the_folder_holds_golden_files():
    found = {family(path) for path in FILES}
    assert found, f"{FOLDER} holds no golden files"
    if FOLDER == OWN_FOLDER:
        assert found == TESTED


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_family_is_known(path):
    assert family(path) in TESTED
