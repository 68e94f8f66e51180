"""``python -m tests.cuda.run``: does PPSD do on this GPU what it does on a CPU?

Starts one engine after the other, each in a process of its own: one device without drafts, with
vLLM's n-gram drafts and with PPSD, and, on two GPUs, pipelines of two without drafts, with PPSD in
exact mode and by default. Prints a table, and what is wrong. The demo model is made from a package
if no model is named. Without a GPU the same runs on the CPU, which shows that this program works.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vllm_ppsd.demo.model import convert
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.report import origin

from .engines import ENGINES
from .verdicts import Expected, Made, problems, table

SYNCHRONISES = "called a synchronizing CUDA operation"
EXPECTED = [
    Expected("one device, n-gram", "one device, plain"),
    Expected("one device, PPSD", "one device, plain"),
    Expected("pipeline of two, PPSD, exact", "pipeline of two, plain", identical=True),
    Expected("pipeline of two, PPSD", "pipeline of two, plain"),
]


def main() -> int:
    """Run the engines, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a target with a head (default: the demo model)")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where that is made")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    given = parser.parse_args()
    model = given.model or given.cache / "demo-model"
    if not model.exists():
        convert(model)
    gpus = torch.cuda.device_count()
    names = [name for name, how in ENGINES.items() if not gpus or how.stages <= gpus]
    made: dict[str, Made] = {}
    with TemporaryDirectory() as folder, progress("engines") as bar:
        for name in bar.track(names):
            file = Path(folder) / "made.json"
            log = _run(name, model, given.tokens, file)
            if not file.exists():
                print(log, file=sys.stderr)
                print(f"{name}: the engine failed, see above", file=sys.stderr)
                return 2
            syncs = log.partition("timed from here")[2].count(SYNCHRONISES) if gpus else None
            made[name] = Made(**json.loads(file.read_text()), syncs=syncs)
            file.unlink()
    expected = [one for one in EXPECTED if one.name in made]
    said = origin("python -m tests.cuda.run")
    where = torch.cuda.get_device_name(0) if gpus else said["cpu"]
    print(f"{where}, {max(gpus, 1)} device(s), {said['versions']}, commit {said['commit']}\n")
    print(table(made, expected))
    wrong = list(problems(made, expected))
    for problem in wrong:
        print(f"WRONG: {problem}")
    if gpus == 1:
        print("Pipelines were left out: NCCL wants a GPU for each stage.")
    if not wrong:
        print("As expected.")
    return 1 if wrong else 0


def _run(name: str, model: Path, tokens: int, file: Path) -> str:
    """Run an engine; return what it printed as errors."""
    command = [sys.executable, "-m", "tests.cuda.engines", name, str(model), str(tokens), str(file)]
    variables = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        # Every wait is told, not only the first of each place.
        "PYTHONWARNINGS": "always",
    }
    if torch.cuda.is_available():
        variables["VLLM_GPU_SYNC_CHECK"] = "warn"
    done = subprocess.run(
        command, env=os.environ | variables, stderr=subprocess.PIPE, text=True, check=False
    )
    return done.stderr


if __name__ == "__main__":
    sys.exit(main())
