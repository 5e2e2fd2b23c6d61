"""Head assignments of the public code, exactly."""

import pytest

from dummyforcing.method.programming import assign_roles
from tests.parity.goldenfile import ROLES, files_of, read


def case_numbers():
    return [(path, entry["case"]) for path in files_of("dhp") for entry in read(path).meta["cases"]]


@pytest.mark.parametrize(("path", "case"), case_numbers())
def test_assignment(path, case):
    stored = read(path).under(f"case{case}")
    roles = assign_roles(stored["scores"], int(stored["num_dummy"].item()))
    assert [[ROLES.index(role) for role in row] for row in roles] == stored["assignment"].tolist()


@pytest.mark.parametrize("path", files_of("dhp"))
def test_no_case_is_left_out(path):
    listed = {f"case{case}" for other, case in case_numbers() if other == path}
    assert {name.split("/")[0] for name in read(path).tensors} == listed
