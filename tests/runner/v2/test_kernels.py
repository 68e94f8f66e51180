"""V2's kernels in torch do what vLLM's do in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from support import v2

FOLDER = Path(v2.__file__).parent


def results(file: Path, *how: str, **variables: str) -> dict[str, torch.Tensor]:
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])} | variables
    command = [sys.executable, "-m", "support.v2.cases", str(file), *how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(file)


def test_kernels_in_torch_do_what_vllms_do(tmp_path: Path):
    paths = os.pathsep.join(map(str, (FOLDER.parents[1], FOLDER / "interpreter")))
    theirs = results(tmp_path / "theirs", PYTHONPATH=paths, TRITON_INTERPRET="1")
    ours = results(tmp_path / "ours", "torch")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        exact = {} if value.dtype == torch.float32 else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(ours[name], value, msg=lambda m, n=name: f"{n}: {m}", **exact)
