"""Containers, as far as they can be looked at without a runtime: what they name is there, and works."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from dummyforcing.server.settings import PREFIX, Settings
from tests.server.serving import Serving

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, in order."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    pairs = [line.partition(" ")[::2] for line in text.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in pairs]


def only(path: Path, name: str) -> str:
    """What an instruction that is there once says."""
    (found,) = [rest for one, rest in instructions(path) if one == name]
    return found


def environment(path: Path) -> dict[str, str]:
    return dict(
        pair.split("=", 1) for name, rest in instructions(path) if name == "ENV" for pair in shlex.split(rest)
    )


def compose(*names: str) -> Any:
    return [yaml.safe_load((DEPLOY / name).read_text()) for name in names]


def test_there_is_one_for_cpus_and_one_for_gpus() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile", "Dockerfile.cuda"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_built_of_what_is_there(path: Path) -> None:
    known = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"}
    assert {name for name, _ in instructions(path)} <= known
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", only(path, "FROM"))
    ignored = (ROOT / ".dockerignore").read_text()
    for name, rest in instructions(path):
        for source in rest.split()[:-1] if name == "COPY" else []:
            assert (ROOT / source).exists()
            assert f"!{source}\n" in ignored
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    copied = {part for name, rest in instructions(path) if name == "COPY" for part in rest.split()[:-1]}
    assert {
        project["readme"],
        *project["license-files"],
        "pyproject.toml",
        "src",
        "constraints.txt",
    } == copied
    (install,) = [rest for name, rest in instructions(path) if name == "RUN" and "pip install" in rest]
    assert "-c constraints.txt" in install
    (extras,) = re.findall(r'"\.\[(.+)\]"', install)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_they_run_without_rights_and_keep_what_is_to_be_kept(path: Path) -> None:
    names = [name for name, _ in instructions(path)]
    assert only(path, "USER") == "1000:1000"
    assert names.index("USER") > max(place for place, name in enumerate(names) if name == "RUN")
    given = environment(path)
    volumes = json.loads(only(path, "VOLUME"))
    assert given["HF_HOME"] in volumes
    assert given["DUMMYFORCING_DATA"] in volumes
    own = {name.removeprefix(PREFIX).lower() for name in given if name.startswith(PREFIX)}
    assert own <= {one.name for one in fields(Settings)}
    program, *args = json.loads(only(path, "ENTRYPOINT"))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert program in scripts
    assert args == ["serve"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_check_of_their_health_works(path: Path, server: Serving) -> None:
    port = only(path, "EXPOSE")
    program, *args = json.loads(only(path, "HEALTHCHECK").partition("CMD ")[2])
    assert program == "python"
    assert f":{port}/" in args[-1]
    own = server.url.rpartition(":")[2]

    def check(port_now: str) -> int:
        command = [sys.executable, *args[:-1], args[-1].replace(f":{port}/", f":{port_now}/")]
        return subprocess.run(command, timeout=20, stderr=subprocess.DEVNULL, check=False).returncode

    assert check(own) == 0
    assert check("9") != 0


def test_prometheus_finds_the_server() -> None:
    (services,) = [one["services"] for one in compose("compose.yaml")]
    (scraped,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    ((host, port),) = [target.split(":") for target in scraped["static_configs"][0]["targets"]]
    server = services[host]
    assert port == only(DEPLOY / "Dockerfile", "EXPOSE")
    assert host in server["environment"]["DUMMYFORCING_ALLOWED_HOST"].split(",")
    assert scraped["metrics_path"] == "/metrics"
    key = server["environment"]["DUMMYFORCING_API_KEY_FILE"]
    assert scraped["authorization"]["credentials_file"] == key == "/run/secrets/key"
    assert server["secrets"] == services["prometheus"]["secrets"] == ["key"]


def test_services_are_complete() -> None:
    base, cuda = compose("compose.yaml", "compose.cuda.yaml")
    for service in base["services"].values():
        image = service["image"]
        assert ":" in image
        assert not image.endswith(":latest")
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in base["volumes"] or (DEPLOY / source).exists()
    for one in (base, cuda):
        build = one["services"]["dummyforcing"]["build"]
        assert (ROOT / build["dockerfile"]).exists()
    mounted = {volume.split(":")[1] for volume in base["services"]["dummyforcing"]["volumes"]}
    assert mounted == set(json.loads(only(DEPLOY / "Dockerfile", "VOLUME")))
    assert int(base["services"]["dummyforcing"]["stop_grace_period"].removesuffix("s")) > 10
    own = base["services"]["dummyforcing"]["environment"]
    assert {name.removeprefix(PREFIX).lower() for name in own} <= {one.name for one in fields(Settings)}
