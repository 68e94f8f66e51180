"""What every benchmark says of its numbers: command, commit, versions, processor."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_ppsd.config.support import installed_vllm
from vllm_ppsd.planning.hardware import hardware


def origin(command: str) -> dict[str, Any]:
    """Return where numbers measured by ``command`` come from."""
    return {
        "command": command,
        "commit": _commit(),
        "versions": " ".join(installed_vllm() or ("vllm", "?")),
        "cpu": hardware(),
    }


def said(module: str) -> str:
    """Return this process's command line, without the places of this machine.

    Args:
        module: of the benchmark, as behind ``python -m``.
    """
    model, *words = sys.argv[1:]
    named = [Path(word).name if os.sep in word else word for word in words]
    assert os.sep in model, "the model comes first, as a path"
    return shlex.join(["python", "-m", module, "MODEL", *named])


def footer(report: dict[str, Any]) -> str:
    """Return the line under a table."""
    return f"`{report['command']}`, commit {report['commit']}, {report['versions']}"


def deliver(report: dict[str, Any], table: str, path: str | None) -> None:
    """Print the table; write all numbers to ``path``, if one is named."""
    print(table)
    if path:
        Path(path).write_text(json.dumps(report, indent=2) + "\n")


def _commit() -> str:
    command: Sequence[str] = ("git", "describe", "--always", "--dirty")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
