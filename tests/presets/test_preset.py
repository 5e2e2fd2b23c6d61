import dataclasses
import json
from pathlib import Path

import pytest

from dummyforcing.checkpoints.transformer import WAN_SIZES
from dummyforcing.errors import BadFile, UserError
from dummyforcing.method.policy import parse_policy
from dummyforcing.presets.catalog import PUBLIC, PUBLIC_TABLES, bundled_folders, find_preset, read_preset
from dummyforcing.presets.preset import (
    SAMPLERS_WITH,
    SIZE_MULTIPLE,
    SIZES,
    DummyDefaults,
    Preset,
    ScheduleArgs,
    Source,
    parse_size,
)
from dummyforcing.sampling.schedule import make_schedule

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


def test_sizes() -> None:
    assert [parse_size(text) for text in ("480p", "720p", "1080p", "48x32", "640X352")] == [
        (480, 832),
        (720, 1280),
        (1088, 1920),
        (32, 48),
        (352, 640),
    ]
    assert not any(side % SIZE_MULTIPLE for size in SIZES.values() for side in size)
    for text in ("4k", "", "832", "x480", "832x", "8.5x16", "-16x16", "480P", "16x16x16"):
        with pytest.raises(UserError, match="take 480p, 720p, 1080p, or width x height such as 832x480"):
            parse_size(text)


def test_seconds() -> None:
    assert CHUNKS_OF_3.pixel_frames_for(5) == 81
    assert CHUNKS_OF_3.pixel_frames_for(0.01) == 9
    assert CHUNKS_OF_3.pixel_frames_for(10) == 165
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="take more than 0"):
            CHUNKS_OF_3.pixel_frames_for(seconds)


def test_read_preset(model_folder: Path) -> None:
    preset, folder = find_preset(model_folder)
    assert folder == model_folder
    assert preset.size == (32, 48)
    assert preset.schedule == ScheduleArgs((1000, 500), 5.0, True)
    assert preset.dummy.dummy_fraction == 0.5
    assert preset.native == "dense"


GOOD = {"name": "m", "description": "", "licence": "", "chunk_frames": 3, "size": [16, 16]}
GOOD["schedule"] = {"steps": [1000], "shift": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonsense": 1}, r"no field 'nonsense'; take name, "),
        ({"chunk_frame": 1}, r"no field 'chunk_frame'; the nearest is 'chunk_frames'\.$"),
        ({"schedule": {"steps": [1]}}, r"schedule: field 'shift' is missing"),
        ({"schedule": {"steps": [1], "shift": 5, "wrap": 1}}, r"schedule: .*'wrap'; the nearest is 'warp'"),
        ({"schedule": {"steps": 1000, "shift": 5}}, r"steps cannot be 1000; give a list of numbers"),
        ({"schedule": {"steps": ["a"], "shift": 5}}, r"steps cannot be 'a'; give a number"),
        ({"schedule": [1000]}, r"schedule is \[1000\], not a table; give its fields: steps, shift, warp"),
        ({"size": [16, 16, 16]}, r"size cannot be \[16, 16, 16\]; give a list of 2 numbers"),
        ({"chunk_frames": 1.5}, r"chunk_frames cannot be 1\.5; give a whole number"),
        ({"chunk_frames": True}, r"chunk_frames cannot be True; give a whole number"),
        ({"global_sink": 1}, r"global_sink cannot be 1; give true or false"),
        ({"sampler": "blok"}, r"sampler cannot be 'blok'; take block or rolling or recompute"),
        ({"like": "self-forcin"}, r"no public model; the nearest is 'self-forcing'"),
    ],
)
def test_bad_preset_names_the_field(tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "preset.json").write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError, match=message):
        find_preset(tmp_path)


@pytest.mark.parametrize("sampler", ["rolling", "recompute"])
@pytest.mark.parametrize(
    ("name", "value"), [("recache_frames", 3), ("first_schedule", {"steps": [1000, 500], "shift": 5})]
)
def test_fields_that_a_sampler_has_no_use_for(tmp_path: Path, sampler: str, name: str, value: object) -> None:
    (tmp_path / "preset.json").write_text(json.dumps(GOOD | {"sampler": sampler, name: value}))
    with pytest.raises(
        UserError, match=f"has {name}, which sampler '{sampler}' has no use for; leave {name} out"
    ):
        find_preset(tmp_path)
    (tmp_path / "preset.json").write_text(json.dumps(GOOD | {"sampler": "block", name: value}))
    find_preset(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_what_is_no_preset(tmp_path: Path, text: str) -> None:
    (tmp_path / "preset.json").write_text(text)
    with pytest.raises(UserError, match="not a preset"):
        find_preset(tmp_path)


def test_a_preset_file_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('like = "longlive"\ndummy = { dummy_fraction = 0.25 }\nsource = { file = "my.pt" }\n')
    preset, folder = find_preset(path)
    assert folder is None
    assert (preset.name, preset.native, preset.licence) == ("mine", "window:3,6", PUBLIC["longlive"].licence)
    assert preset.dummy == DummyDefaults(dummy_fraction=0.25)
    assert preset.source == Source(str(tmp_path / "my.pt"))
    path.with_suffix(".json").write_text(json.dumps({"like": "causvid", "name": "other"}))
    preset = read_preset(path.with_suffix(".json"))
    assert preset.name == "other"
    assert preset.source == PUBLIC["causvid"].source


def test_bundled_presets() -> None:
    for name, folder in bundled_folders().items():
        preset, found = find_preset(name)
        assert found == folder
        assert preset.name == name
        assert name not in PUBLIC
        assert preset.latent_frames(81) == 21


def test_files_beside_a_preset(tmp_path: Path) -> None:
    """Weights, LoRA and base are relative to the preset, in a folder of a model, too."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "base").mkdir()
    path = tmp_path / "mine" / "preset.json"
    source = {"file": "my.pt", "lora": "lora.safetensors"}
    path.write_text(json.dumps({"like": "self-forcing", "source": source, "base": "../base"}))
    preset, folder = find_preset(tmp_path / "mine")
    assert folder == tmp_path / "mine"
    assert preset.source == Source(str(folder / "my.pt"), lora=str(folder / "lora.safetensors"))
    assert Path(preset.base).samefile(tmp_path / "base")
    path.write_text(json.dumps({"like": "self-forcing", "source": source}))
    assert read_preset(path).base == PUBLIC["self-forcing"].base


def test_public_presets() -> None:
    for name, preset in PUBLIC.items():
        assert find_preset(name) == (preset, None)
        assert preset.name == name
        assert preset.source is not None
        assert preset.source.repo
        assert preset.architecture in WAN_SIZES
        assert preset.licence
        parse_policy(preset.native)
        schedules = [preset.schedule, preset.first_schedule or preset.schedule]
        assert all(schedule.steps[0] == 1000 for schedule in schedules)
        assert preset.latent_frames(81) == 21
        assert bool(preset.context_frames) == (preset.sampler == "recompute")
        # A rolling model sees `reach` frames at a time: the pinned, the recent and the current ones.
        if preset.sampler == "rolling":
            context = parse_policy(preset.native).initial
            assert context.total == preset.local_attention_size == 21
    assert len(PUBLIC) == len(PUBLIC_TABLES) == 16


@pytest.mark.parametrize(
    ("name", "steps", "sigmas"),
    [
        ("self-forcing", [1000, 937.5, 833.33331, 625], [1, 0.9375, 0.83333331, 0.625]),
        ("causal-forcing-2step", [1000, 833.33331], [1, 0.83333331]),
        ("causal-forcing-1step", [1000], [1]),
        (
            "rolling-forcing",
            [1000, 952.38104, 882.35291, 769.23077, 555.5556],
            [1, 0.95238101, 0.88235289, 0.76923078, 0.55555558],
        ),
        ("causvid", [1000, 757, 522], [1, 0.75675672, 0.52173913]),
        ("causvid-4step", [1000, 960, 888.88892, 727.27277], [1, 0.96, 0.8888889, 0.72727275]),
        (
            "krea-realtime",
            [1000, 937.5, 833.33331, 625, 0],
            [1, 0.9375, 0.83333331, 0.625, 0.00498008],
        ),
        ("krea-block", [1000, 937, 833, 625, 0], [1, 0.93687373, 0.83277708, 0.625, 0.00498008]),
    ],
)
def test_noise_levels_are_those_of_the_public_code(
    name: str, steps: list[float], sigmas: list[float]
) -> None:
    schedule = PUBLIC[name].schedule
    made = make_schedule(schedule.steps, schedule.shift, schedule.warp)
    assert made.timesteps == pytest.approx(steps, abs=2e-4)
    assert made.sigmas == pytest.approx(sigmas, abs=2e-7)


def test_current_frames() -> None:
    assert PUBLIC["rolling-forcing"].current_frames == 15
    assert PUBLIC["causal-forcing-long"].current_frames == 12
    assert PUBLIC["krea-realtime"].current_frames == 3
    assert PUBLIC["causal-forcing-frame"].current_frames == 1


def test_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model or folder 'sora'; take tiny, self-forcing, "):
        find_preset("sora")
    with pytest.raises(UserError, match=r"'longlife'; the nearest is 'longlive'"):
        find_preset("longlife")
    with pytest.raises(UserError, match=r'holds no preset\.json .*model="self-forcing" weights="'):
        find_preset(tmp_path)


USES = {
    "first_schedule": {"steps": [1000, 500], "shift": 5},
    "overlap_frames": 3,
    "recache_frames": 12,
    "global_sink": True,
    "context_frames": 3,
    "keep_first_frame": True,
}
"""Fields that only some samplers have a use for, with a value."""


@pytest.mark.parametrize("field", USES)
@pytest.mark.parametrize("sampler", ["block", "rolling", "recompute"])
def test_fields_belong_to_samplers(tmp_path: Path, sampler: str, field: str) -> None:
    path = tmp_path / "mine.json"
    preset = {**GOOD, "sampler": sampler, "max_frames": 21, field: USES[field]}
    preset |= {"context_frames": 3} if sampler == "recompute" else {}
    path.write_text(json.dumps(preset))
    its_own = "recompute" if field in ("context_frames", "keep_first_frame") else "block"
    if sampler == its_own:
        assert getattr(read_preset(path), field)
        return
    refusal = (
        rf"mine\.json: Preset 'm' has {field}, which sampler '{sampler}' has no use for; "
        rf"leave {field} out, or take sampler '{its_own}'\.$"
    )
    with pytest.raises(BadFile, match=refusal):
        read_preset(path)
    # Its default says nothing: a preset that is like another one can take a field back.
    default = next(one.default for one in dataclasses.fields(Preset) if one.name == field)
    if default is not None:
        path.write_text(json.dumps({**preset, field: default}))
        assert getattr(read_preset(path), field) == default


def test_a_context_of_no_frames_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({**GOOD, "sampler": "recompute"}))
    with pytest.raises(BadFile, match=r"builds its cache from context_frames, and there are none; give 1 or"):
        read_preset(tmp_path / "mine.json")


def test_every_field_that_belongs_to_a_sampler_is_known() -> None:
    assert SAMPLERS_WITH.keys() == USES.keys()
    assert SAMPLERS_WITH.keys() <= {one.name for one in dataclasses.fields(Preset)}


@pytest.mark.parametrize("name", ["mine.json", "mine.toml"])
def test_an_old_name_of_a_field_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(
        json.dumps({**GOOD, "reach": 21}) if name.endswith("json") else 'like = "longlive"\nreach = 12\n'
    )
    with pytest.raises(BadFile, match=r"field 'reach' is called 'local_attention_size' by now; rename it"):
        find_preset(path)
