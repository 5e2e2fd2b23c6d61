"""Write all pages, tables and pictures that are made of the code and of benchmarks/results/.

python -m research.pages [--check]

Pictures of videos and of measurements are made by `python -m research.pages.pictures`, which runs the model,
`python -m research.pages.realtime`, `python -m research.pages.viewers`, `python -m research.pages.gpus` and
`python -m research.benchmarks.reproduce`.
"""

from pathlib import Path

from research.pages import (
    architecture,
    cli_reference,
    concept,
    options_reference,
    protocol_reference,
    tables,
)
from research.pages.making import main


def made() -> dict[Path, str]:
    """All of them by path."""
    makers = (tables, options_reference, protocol_reference, cli_reference, concept, architecture)
    return {path: text for maker in makers for path, text in maker.made().items()}


if __name__ == "__main__":
    main(made, __doc__)
