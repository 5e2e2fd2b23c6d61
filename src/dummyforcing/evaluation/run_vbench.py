"""Runs the `vbench` package, under the interpreter of whatever environment it is in.

It stands alone, for that environment need not have dummyforcing:

    python run_vbench.py                  # prints where the package is, as JSON
    python run_vbench.py '{"device": ...  # computes a dimension; VBench writes its own files
"""

import json
import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose vbench.py is another
    import vbench

    if len(sys.argv) == 1:
        print(json.dumps({"vbench": vbench.__file__}))
    else:
        import torch

        job = json.loads(sys.argv[1])
        judge = vbench.VBench(torch.device(job["device"]), job["info"], job["output"])
        judge.evaluate(
            videos_path=job["videos"],
            name=job["dimension"],
            dimension_list=[job["dimension"]],
            local=True,
            mode="vbench_standard",
        )
