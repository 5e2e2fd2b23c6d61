import json
from pathlib import Path

import pytest

from dummyforcing.checkpoints import WAN_SIZES
from dummyforcing.errors import UserError
from dummyforcing.presets import PUBLIC, Preset, ScheduleArgs, bundled_folders, find_folder, read_preset

CHUNKS_OF_3 = Preset("m", "", "apache-2.0", 3, ScheduleArgs((1000,), 5.0))
FRAME_WISE = Preset("m", "", "apache-2.0", 1, ScheduleArgs((1000,), 5.0))


def test_valid_frame_counts() -> None:
    valid = [9, 21, 33, 45, 57, 69, 81]
    assert [CHUNKS_OF_3.pixel_frames(n) for n in range(3, 22, 3)] == valid
    assert [CHUNKS_OF_3.latent_frames(n) for n in valid] == list(range(3, 22, 3))
    assert CHUNKS_OF_3.pixel_frames(60) == 237
    assert [FRAME_WISE.pixel_frames(n) for n in (1, 2, 3)] == [1, 5, 9]
    assert [FRAME_WISE.latent_frames(n) for n in (1, 5, 9)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("count", "nearest"), [(80, "69 or 81"), (82, "81 or 93"), (1, "9"), (0, "9"), (-7, "9"), (10, "9 or 21")]
)
def test_other_frame_counts_name_the_nearest(count: int, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"take {nearest}\.$"):
        CHUNKS_OF_3.latent_frames(count)


def test_seconds() -> None:
    assert CHUNKS_OF_3.pixel_frames_for(5) == 81
    assert CHUNKS_OF_3.pixel_frames_for(0.01) == 9
    assert CHUNKS_OF_3.pixel_frames_for(10) == 165
    for seconds in (0, -1, float("nan")):
        with pytest.raises(UserError, match="take more than 0"):
            CHUNKS_OF_3.pixel_frames_for(seconds)


def test_read_preset(model_folder: Path) -> None:
    preset = read_preset(find_folder(model_folder))
    assert preset.size == (32, 48)
    assert preset.schedule == ScheduleArgs((1000, 500), 5.0, True)
    assert preset.dummy.dummy_fraction == 0.5
    assert preset.native == "dense"


def test_bad_preset_names_the_field(tmp_path: Path) -> None:
    good = {"name": "m", "description": "", "licence": "", "chunk_frames": 3, "size": [16, 16]}
    good["schedule"] = {"steps": [1000], "shift": 5}
    for change, field in (({"nonsense": 1}, "nonsense"), ({"schedule": {"steps": [1]}}, "shift")):
        (tmp_path / "preset.json").write_text(json.dumps(good | change))
        with pytest.raises(UserError, match=field):
            read_preset(tmp_path)
    (tmp_path / "preset.json").write_text("{")
    with pytest.raises(UserError, match="not a preset"):
        read_preset(tmp_path)


def test_bundled_presets() -> None:
    for name, folder in bundled_folders().items():
        preset = read_preset(folder)
        assert find_folder(name) == folder
        assert preset.name == name
        assert name not in PUBLIC
        assert preset.latent_frames(81) == 21


def test_public_presets() -> None:
    families = ("self-forcing", "longlive", "causvid", "rolling-forcing", "krea-realtime", "causal-forcing")
    assert set(families) <= set(PUBLIC)
    for preset in PUBLIC.values():
        assert preset.source is not None
        assert preset.source.size in WAN_SIZES
        assert preset.licence
        with pytest.raises(UserError) as caught:
            find_folder(preset.name)
        for fact in (preset.source.repo, preset.source.file, preset.licence, "bundled model"):
            assert fact in str(caught.value)


def test_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model or folder 'sora'; the models are .*self-forcing"):
        find_folder("sora")
    with pytest.raises(UserError, match=r"holds no preset\.json"):
        find_folder(tmp_path)
