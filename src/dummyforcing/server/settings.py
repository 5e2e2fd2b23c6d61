"""Everything about a server that can be set, once: flags of `serve`, environment variables, a TOML file.

Flags win over the environment, and the environment over the file:

    settings = read_settings({"port": 9000}, config="server.toml")
"""

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dummyforcing.errors import BadFile, BadRequest
from dummyforcing.files.reading import read_toml
from dummyforcing.pipeline.option import Documented, documented, option
from dummyforcing.pipeline.options import choose

PREFIX = "DUMMYFORCING_"
"""Of the environment variables; `DUMMYFORCING_MAX_DISK=20GB` is `--max-disk 20GB`."""
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a server."""

    host: str = option("127.0.0.1", metavar="ADDRESS")
    """Address to listen at. Any but this machine's own needs keys, or --no-auth."""
    port: int = option(8000, kind=int, metavar="N", least=0, most=65535)
    """Port; 0 takes a free one."""
    data: "str | Path | None" = option(None, metavar="FOLDER", hint="a temporary folder")
    """Where jobs, videos and uploads are kept."""
    api_key_file: "str | Path | None" = option(None, metavar="FILE", hint="no keys")
    """Keys that clients must show, one a line, each of 16 characters or more."""
    api_key: str | None = option(None, is_flag=False, hint="none")
    """A single key. It is no flag, as the list of processes shows those to everybody."""
    no_auth: bool = option(False, kind=bool)
    """Let anybody in who reaches the address."""
    cors: "str | Sequence[str]" = option((), metavar="ORIGIN", is_repeated=True)
    """Another site whose pages may use this server, such as https://app.example.com; may be several."""
    allowed_host: "str | Sequence[str]" = option((), metavar="NAME", is_repeated=True)
    """A further name that this server is reached by, such as video.example.com behind a proxy."""
    trust_proxy: bool = option(False, kind=bool)
    """Take a client's address and scheme from the headers that a proxy on this machine adds (X-Forwarded-For,
    X-Forwarded-Proto). Only with a proxy that sets them itself."""
    keep: str = option("7d", metavar="TIME")
    """How long finished videos and uploads are kept: 90m, 12h, 7d."""
    max_disk: str = option("20GB", metavar="SIZE")
    """Space for all of them; the oldest go first."""
    expand_prompts: str | None = option(None, metavar="URL", hint="off")
    """An OpenAI-compatible endpoint, such as http://127.0.0.1:11434/v1, that makes short prompts long."""
    expand_model: str = option("default", metavar="NAME")
    """The language model to ask for there."""
    log_prompts: bool = option(False, kind=bool)
    """Write prompts into the log."""
    log_format: Literal["auto", "text", "json"] = option("auto", choices=("auto", "text", "json"))
    """How the log is written to stderr: text for people, json for programs; auto is text on a terminal."""
    ray: str | None = option(None, metavar="local|auto|HOST:PORT", hint="off")
    """Have processes of Ray make the videos, each with the model and a GPU of its own, or a share of the
    cores where there is none: local, on this machine; auto, on the cluster that runs here or that RAY_ADDRESS
    names; or HOST:PORT of one."""
    replicas: str = option("1", metavar="N|LEAST:MOST")
    """With --ray: how many of them. With 1:4 further ones begin when sessions or jobs wait, and those that
    have nothing to do for a minute end."""
    snapshot: int = option(8, kind=int, metavar="CHUNKS", unit="chunks", least=1)
    """With --ray: after so many chunks the state of a live video is kept; it goes on from there if the
    process that makes it dies."""
    ahead: int = option(3, kind=int, metavar="CHUNKS", unit="chunks", least=1, most=100)
    """How far a live video is made ahead of what its viewer is at."""
    held: str = option("4GB", metavar="SIZE")
    """Memory of a session for chunks that one can go back to or branch from; one more than are made ahead are
    held in any case."""
    resume: int = option(60, kind=int, metavar="SECONDS", unit="s", least=0)
    """How long a session waits for a client that lost its connection."""
    idle: int = option(600, kind=int, metavar="SECONDS", unit="s", least=1)
    """A session ends when its client has asked for nothing for so long."""
    max_sessions: int = option(32, kind=int, metavar="N", least=0)
    """Live sessions at once; further ones wait. What the device can do is looked at besides."""
    max_sessions_per_key: int = option(8, kind=int, metavar="N", least=0)
    """Live sessions of one key at once."""
    max_waiting: int = option(64, kind=int, metavar="N", least=0)
    """Live sessions that wait for their turn; further ones are refused."""
    max_jobs: int = option(1000, kind=int, metavar="N", least=0)
    """Jobs that wait or run; further ones are refused."""
    max_jobs_per_key: int = option(200, kind=int, metavar="N", least=0)
    """The same for one key."""
    max_frames: int = option(4800, kind=int, metavar="N", unit="pixel frames", least=1)
    """Length of a job's video, and of a live one."""
    max_size: str = option("1920x1088", metavar="WxH")
    """Largest video: as many pixels as this."""
    max_chunk: int = option(5, kind=int, metavar="SECONDS", unit="s", least=1)
    """A video is refused if the device would be at each chunk for longer: nobody else is served meanwhile."""
    max_prompt: int = option(4000, kind=int, metavar="N", unit="characters", least=1)
    """Length of a prompt."""
    max_body: str = option("64MB", metavar="SIZE")
    """Largest upload; other requests and messages may have 1 MB."""
    max_image_pixels: int = option(50_000_000, kind=int, metavar="N", unit="pixels", least=1)
    """Of an image or a frame of a clip, before it is decoded."""
    max_clip: int = option(600, kind=int, metavar="SECONDS", unit="s", least=1)
    """Length of a clip that is uploaded."""
    requests_per_minute: int = option(600, kind=int, metavar="N", least=1)
    """Of a key, or of an address where there are no keys."""
    messages_per_second: int = option(100, kind=int, metavar="N", least=1)
    """Of a live connection."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def read_settings(given: Mapping[str, Any], config: "str | Path | None" = None) -> Settings:
    """Put settings together: given ones win over environment variables, these over the file.

    Args:
        given: By name.
        config: A TOML file of settings.

    Raises:
        UserError: If there is no such setting, or a value is out of range.
    """
    settings = choose(Settings, {**_of_file(config), **_of_environment(os.environ), **given})
    for name in ("max_disk", "held", "max_body"):
        parse_bytes(getattr(settings, name), name)
    parse_duration(settings.keep, "keep")
    parse_range(settings.replicas, "replicas")
    if not re.fullmatch(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", settings.max_size):
        raise BadRequest(f"'{settings.max_size}' is no size", "write it like 1920x1088", "max_size")
    for origin in several(settings.cors):
        if not re.fullmatch(r"https?://[^/\s*?#@]+", origin):
            raise BadRequest(f"'{origin}' is no origin", "write it like https://app.example.com", "cors")
    return settings


def several(value: "str | Sequence[str]") -> Sequence[str]:
    """The values of a setting that may be given several times, or once as it is."""
    return [value] if isinstance(value, str) else value


def _of_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Settings of environment variables; empty ones are not set."""
    return {
        one.name: _read(one, text)
        for one in documented(Settings)
        if (text := environment.get(PREFIX + one.name.upper(), "").strip())
    }


def _read(one: Documented, text: str) -> Any:
    """The value of an environment variable."""
    variable = f"{PREFIX}{one.name.upper()}"
    if one.about.kind is bool:
        if text.lower() not in TRUE + FALSE:
            raise BadRequest(f"{variable} is neither true nor false", "set it to 1 or 0", one.name)
        return text.lower() in TRUE
    if one.about.kind is int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise BadRequest(f"{variable} is no whole number", "give one", one.name)
        return int(text)
    return [part.strip() for part in text.split(",") if part.strip()] if one.about.is_repeated else text


def _of_file(path: "str | Path | None") -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return read_toml(path)
    except OSError as error:
        raise BadFile(f"{path} cannot be read ({error.strerror})", "give a TOML file of settings") from error
    except ValueError as error:
        raise BadFile(f"{path} is no TOML ({error})", "mend it there") from error


UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SECONDS = {"S": 1, "M": 60, "H": 3600, "D": 86400}


def parse_bytes(text: str, name: str | None = None) -> int:
    """Bytes of a size such as 20GB; `name` is the setting that it is of.

    Raises:
        BadRequest: If it is none.
    """
    return round(_amount(text, UNITS, "size", "500MB or 20GB", name))


def parse_duration(text: str, name: str | None = None) -> float:
    """Seconds of a time such as 90m, 12h or 7d; `name` is the setting that it is of.

    Raises:
        BadRequest: If it is none.
    """
    return _amount(text, SECONDS, "time", "90m, 12h or 7d", name)


def parse_range(text: str, name: str | None = None) -> tuple[int, int]:
    """The least and the most of `2` or `1:4`; `name` is the setting that it is of.

    Raises:
        BadRequest: If it is none, or empty.
    """
    found = re.fullmatch(r"([0-9]{1,4})(?::([0-9]{1,4}))?", text.strip())
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise BadRequest(
            f"'{text}' is no number of processes", "write it like 2 or 1:4; one is there in any case", name
        )
    return least, most


def _amount(text: str, units: Mapping[str, int], what: str, examples: str, name: str | None) -> float:
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Z]+)", text.strip().upper())
    if found is None or found[2] not in units:
        raise BadRequest(f"'{text}' is no {what}", f"write it like {examples}", name)
    return float(found[1]) * units[found[2]]
