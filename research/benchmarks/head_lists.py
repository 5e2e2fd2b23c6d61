"""What published head lists of real checkpoints say: shares of static heads, and heads that lists share.

python -m research.benchmarks.head_lists FILE FILE ... --output benchmarks/results/head-lists.json

The files are those of Forcing-KV's folder `configs_head`; only shares and counts are kept of them.
"""

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from dummyforcing.evaluation.results import write_results
from dummyforcing.method.head_lists import HeadLists

SOURCE = "github.com/zju-jiyicheng/Forcing-KV at 50ac1f4, configs_head, Apache-2.0; arXiv:2605.09681"


def summarise(named: Sequence[tuple[str, HeadLists]]) -> dict[str, Any]:
    """Sum lists up.

    Args:
        named: Lists and their names.

    Returns:
        Per list its sizes, hash and number of static heads; per pair of lists of one size how many heads are
        static in both, over the mean number of static heads (`common`), over those that are in either
        (`jaccard`), and what `common` would be on average if heads were drawn.
    """
    lists: dict[str, dict[str, Any]] = {}
    pairs = []
    for name, one in named:
        per_layer = [sum(row) for row in one.static]
        lists[name] = {
            "sha256": one.source["sha256"],
            "layers": len(per_layer),
            "heads": len(one.static[0]),
            "static": sum(per_layer),
            "share": sum(per_layer) / (len(per_layer) * len(one.static[0])),
            "per_layer": [min(per_layer), max(per_layer)],
        }
    for (name, one), (other_name, other) in combinations(named, 2):
        first, second = _set(one), _set(other)
        total = lists[name]["layers"] * lists[name]["heads"]
        if (len(one.static), len(one.static[0])) == (len(other.static), len(other.static[0])):
            mean, both = (len(first) + len(second)) / 2, len(first & second)
            pairs.append(
                {
                    "lists": [name, other_name],
                    "both": both,
                    "common": both / mean,
                    "jaccard": both / len(first | second),
                    "common_if_drawn": len(first) * len(second) / total / mean,
                }
            )
    return {"source": SOURCE, "lists": lists, "pairs": pairs}


def _set(lists: HeadLists) -> set[tuple[int, int]]:
    """Layer and number of each static head."""
    return {(layer, head) for layer, row in enumerate(lists.static) for head, one in enumerate(row) if one}


def main() -> None:
    """Read the lists, and write what they say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    named = [(path.stem.removeprefix("forcingkv_heads_"), HeadLists.load(path)) for path in args.files]
    write_results(args.output, summarise(named), torch.device("cpu"))


if __name__ == "__main__":
    main()
