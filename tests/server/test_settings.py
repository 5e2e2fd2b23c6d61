"""Settings from flags, the environment and a file."""

import dataclasses
from pathlib import Path

import pytest

from dummyforcing.cli.flags import FlagsOf
from dummyforcing.errors import UserError
from dummyforcing.pipeline.option import documented
from dummyforcing.server.settings import Settings, parse_bytes, parse_duration, read_settings


def test_flags_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "server.toml"
    path.write_text('port = 1\nmax_disk = "1GB"\nahead = 7\ncors = ["https://a.example"]\nno_auth = true\n')
    monkeypatch.setenv("DUMMYFORCING_PORT", "2")
    monkeypatch.setenv("DUMMYFORCING_MAX_DISK", " 2GB ")
    monkeypatch.setenv("DUMMYFORCING_ALLOWED_HOST", "a.example, b.example")
    monkeypatch.setenv("DUMMYFORCING_API_KEY", "")  # as a compose file sets what is not set outside
    settings = read_settings({"port": 3}, path)
    assert (settings.port, settings.max_disk, settings.ahead) == (3, "2GB", 7)
    assert list(settings.cors) == ["https://a.example"]
    assert list(settings.allowed_host) == ["a.example", "b.example"]
    assert settings.no_auth
    assert settings.api_key is None


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("TRUE", True), ("on", True), ("0", False), ("No", False)]
)
def test_switches_of_the_environment(monkeypatch: pytest.MonkeyPatch, text: str, value: bool) -> None:
    monkeypatch.setenv("DUMMYFORCING_LOG_PROMPTS", text)
    assert read_settings({}).log_prompts is value


def test_every_setting_can_be_set_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {
        "host": "::1",
        "cors": "https://x.example",
        "max_size": "64x64",
        "keep": "1h",
        "replicas": "1:4",
        "log_format": "json",
    }
    for one in documented(Settings):
        size = "1MB" if isinstance(one.default, str) and one.default.endswith("B") else "text"
        text = own.get(one.name) or {bool: "1", int: "11"}.get(one.about.kind, size)
        monkeypatch.setenv(f"DUMMYFORCING_{one.name.upper()}", text)
    settings = read_settings({})
    same = [one.name for one in dataclasses.fields(Settings) if getattr(settings, one.name) == one.default]
    assert same == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("PORT", "eighty", "DUMMYFORCING_PORT is no whole number"),
        ("PORT", "70000", "port=70000 is out of range; take 0 or more and 65535 at most"),
        ("AHEAD", "-1", "ahead=-1 is out of range"),
        ("NO_AUTH", "perhaps", "DUMMYFORCING_NO_AUTH is neither true nor false; set it to 1 or 0"),
        ("LOG_FORMAT", "xml", "There is no log_format 'xml'; take auto, text, json"),
        ("MAX_DISK", "plenty", "'plenty' is no size; write it like 500MB or 20GB"),
        ("KEEP", "1 week", "'1 week' is no time; write it like 90m, 12h or 7d"),
        ("MAX_SIZE", "0x64", "'0x64' is no size; write it like 1920x1088"),
        ("CORS", "*", r"'\*' is no origin; write it like https://app.example.com"),
        ("CORS", "https://a.example/path", "is no origin"),
    ],
)
def test_bad_values_are_explained(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    monkeypatch.setenv(f"DUMMYFORCING_{name}", text)
    with pytest.raises(UserError, match=message) as caught:
        read_settings({})
    assert caught.value.option == name.lower()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_disks = '1GB'", "There is no option 'max_disks'.*max_disk"),
        ("port = '80'", "port='80' is no whole number"),
        ("port = true", "port=True is no whole number"),
        ("[server]\nport = 80", "There is no option 'server'"),
        ("port = ", "is no TOML"),
        (b"\xff", "is no TOML"),
        (None, "cannot be read"),
    ],
)
def test_bad_files_are_explained(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    path = tmp_path / "server.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read_settings({}, path)


def test_the_key_is_no_flag() -> None:
    flags = {one.flag for one in FlagsOf(Settings).options()}
    assert "api-key-file" in flags
    assert "api-key" not in flags


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("1.5KB", 1500), ("500 mb", 5 * 10**8), ("20GB", 20 * 10**9), ("2TB", 2 * 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1e9B", "1PB", "1G", "٣GB", "9" * 400 + "B", "1.GB", "nanGB"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(UserError, match="is no size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("90m", 5400), ("12h", 43200), ("7D", 604800), ("0.5h", 1800)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
