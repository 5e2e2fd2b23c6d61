"""Write docs/reference/options.md and settings.md from the classes of options and settings.

python -m research.pages.options_reference [--check]
"""

from collections.abc import Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from dummyforcing.pipeline.option import Documented, documented
from dummyforcing.pipeline.options import (
    REFUSED,
    CallOptions,
    LoadOptions,
    VideoOptions,
)
from dummyforcing.server.settings import PREFIX, Settings
from dummyforcing.server.web.metrics import Metrics
from research.pages.making import ROOT, main, table

PATH = ROOT / "docs" / "reference" / "options.md"
SETTINGS_PATH = ROOT / "docs" / "reference" / "settings.md"
SETTINGS_INTRODUCTION = """# Settings of the server

Written by `python -m research.pages.options_reference` from `server/settings.py`, the one place where they
are declared. Each is a flag of `dummyforcing serve`, an environment variable, and a line of a TOML file
(`dummyforcing serve --config server.toml`):

```toml
host = "0.0.0.0"
api_key_file = "/etc/dummyforcing/keys.txt"
cors = ["https://app.example.com"]
max_disk = "100GB"
```

Flags win over the environment, and the environment over the file. Variables that are empty are not set; a
switch is 1 or 0 there, and what may be several is separated by commas. `DUMMYFORCING_EXPAND_KEY` is the key
of the endpoint that writes prompts out. Options of the model (`--model`, `--device`, `--fp8` and others) are
flags alone: see [Command line](cli.md#serve).
"""
METRICS_INTRODUCTION = """
## Metrics

At `/metrics`, in Prometheus' text format; where there are keys, it needs one. `deploy/prometheus.yml` is a
configuration that shows it. `/health` says whether the server lives, `/ready` whether it takes new work (503
while it warms up, shuts down, or a queue is full); neither needs a key.
"""
INTRODUCTION = """# Options

Written by `python -m research.pages.options_reference` from `pipeline/options.py`, the one place where
options are declared. In Python they are keyword arguments; the command line has the flags. A preset may have
other defaults (`options = { policy = "anchored" }`). A number out of its bounds, an unknown name, or two
options that say the same are refused with a sentence that says what would work.
"""
PARTS = (
    (
        "Of a model",
        "`DummyForcingPipeline.from_pretrained(name, ...)`, `load(name, ...)`, and commands with `--model`.",
        LoadOptions,
        None,
    ),
    (
        "Of a video",
        "`pipe(prompt, ...)`, `pipe.generate`, `pipe.stream`, `pipe.start`, and `dummyforcing generate`.",
        VideoOptions,
        None,
    ),
    ("Of a call", "`pipe(prompt, ...)` alone, beside those of a video.", CallOptions, VideoOptions),
)


def row(one: Documented) -> list[str]:
    """An option as a row."""
    flag = f"`--{one.flag}`" if one.about.is_flag else "-"
    return [f"`{one.name}`", flag, _default(one), _values(one), one.text.replace("|", "\\|")]


def _default(one: Documented) -> str:
    if one.about.hint:
        return one.about.hint
    return "none" if one.default in (None, ()) else f"`{one.default}`"


def _values(one: Documented) -> str:
    about = one.about
    if about.choices:
        return ", ".join(f"`{choice}`" for choice in about.choices)
    low = f"above {about.above:g}" if about.above is not None else ""
    if about.least is not None:
        low = f"{about.least:g}"
    if about.most is not None:
        high = "2^63 - 1" if about.most == 2**63 - 1 else f"{about.most:g}"
        bounds = f"{low} to {high}"
    else:
        bounds = f"{low} or more" if about.least is not None else low
    unit = f"in {about.unit}" if about.unit else ""
    return ", ".join(part for part in (bounds, unit) if part) or "-"


def made() -> Mapping[Path, str]:
    """The page by its path."""
    parts = [INTRODUCTION]
    header = ["option", "flag", "default", "values", "what it is"]
    for title, where, kind, base in PARTS:
        known = {one.name for one in documented(base)} if base else set()
        rows = [row(one) for one in documented(kind) if one.name not in known]
        parts.append(f"## {title}\n\n{where}\n\n{table(header, rows)}\n")
    refused = [[f"`{name}`", why] for name, why in REFUSED.items()]
    told = "What pipelines for other models have, and these refuse:"
    parts.append(f"## Not there\n\n{told}\n\n{table(['option', 'why'], refused)}\n")
    return {
        PATH: "\n".join(parts),
        SETTINGS_PATH: f"{SETTINGS_INTRODUCTION}\n{_settings()}\n{METRICS_INTRODUCTION}\n{_metrics()}\n",
    }


def _metrics() -> str:
    metrics = Metrics()
    metrics.chunk_made(12, 0.5, is_live=True)  # labels are known only where something was counted
    metrics.errors.labels("not_found")
    metrics.request_done("GET", "/ready", 200, 0.0)
    rows = []
    for family in text_string_to_metric_families(metrics.text().decode()):
        if not family.name.endswith("_created"):
            labels = {name for one in family.samples for name in one.labels} - {"le"}
            name = f"{family.name}_total" if family.type == "counter" else family.name
            marks = ", ".join(f"`{label}`" for label in sorted(labels)) or "-"
            rows.append([f"`{name}`", family.type, marks, family.documentation])
    return table(["metric", "type", "labels", "what it is"], rows)


def _settings() -> str:
    rows = []
    for one in documented(Settings):
        flag = f"`--{one.flag}`" if one.about.is_flag else "-"
        variable = f"`{PREFIX}{one.name.upper()}`"
        rows.append(
            [f"`{one.name}`", flag, variable, _default(one), _values(one), one.text.replace("|", "\\|")]
        )
    return table(["setting", "flag", "environment", "default", "values", "what it is"], rows)


if __name__ == "__main__":
    main(made, __doc__)
