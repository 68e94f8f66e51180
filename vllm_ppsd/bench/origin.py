"""What is said of measured numbers: command, commit, versions, hardware."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import vllm_ppsd
from vllm_ppsd.contract.series import installed_vllm
from vllm_ppsd.planning.hardware import hardware


def origin(command: str) -> dict[str, Any]:
    """Return where numbers measured by ``command`` come from."""
    return {
        "command": command,
        "commit": _commit(),
        "versions": " ".join(installed_vllm() or ("vllm", "?")),
        "cpu": hardware(),
    }


def said(program: str, model: str) -> str:
    """Return this process's command line, without the places of this machine.

    Args:
        program: what stands before the arguments.
        model: the argument that names the model.
    """
    words = ["MODEL" if word == model else word for word in sys.argv[1:]]
    return shlex.join([*program.split(), *map(_short, words)])


def _short(word: str) -> str:
    option, sign, value = word.rpartition("=")
    return f"{option}{sign}{Path(value).name if os.sep in value else value}"


def footer(report: dict[str, Any]) -> str:
    """Return the line under a table."""
    return f"`{report['command']}`, commit {report['commit']}, {report['versions']}"


def deliver(report: dict[str, Any], table: str, path: str | None) -> None:
    """Print the table; write all numbers to ``path``, if one is named."""
    print(table)
    if path:
        Path(path).write_text(json.dumps(report, indent=2) + "\n")


def _commit() -> str:
    """Return the commit of this code, or its version where it is not in a checkout."""
    package = Path(vllm_ppsd.__file__).parent
    command = ["git", "-C", str(package), "describe", "--always", "--dirty"]
    tracked = ["git", "-C", str(package), "ls-files", "--error-unmatch", "plugin.py"]
    with contextlib.suppress(OSError):
        if subprocess.run(tracked, capture_output=True, check=False).returncode == 0:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            return result.stdout.strip()
    return f"none, vllm-ppsd {vllm_ppsd.__version__}"
