"""Write measured numbers down: Markdown tables, and where the numbers come from."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import vllm_ppsd
from vllm_ppsd.contract.series import installed_vllm


def origin(command: str) -> dict[str, Any]:
    """Return where numbers measured by ``command`` come from."""
    return {
        "command": command,
        "commit": _commit(),
        "versions": " ".join(installed_vllm() or ("vllm", "?")),
        "cpu": hardware(),
    }


def hardware() -> str:
    """Return the accelerator's name, or the processor's and how many cores may be used."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return str(current_platform.get_device_name())
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {len(os.sched_getaffinity(0))} cores"
    return "a CPU"


def portable_command(program: str, model: str = "") -> str:
    """Return this process's command line, without the paths of this machine.

    Args:
        program: what stands before the arguments.
        model: the argument that names the model, if there is one.
    """
    words = ["MODEL" if word == model else word for word in sys.argv[1:]]
    return shlex.join([*program.split(), *map(_short, words)])


def _short(word: str) -> str:
    option, sign, value = word.rpartition("=")
    return f"{option}{sign}{Path(value).name if os.sep in value else value}"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the first and third quartile; of one value, that value twice."""
    if len(values) == 1:
        return [values[0], values[0]]
    return statistics.quantiles(values, method="inclusive")[::2]


def median_and_quartiles(values: Sequence[float]) -> str:
    """Return ``1.23 (1.10 to 1.31)``."""
    first, third = quartiles(values)
    return f"{statistics.median(values):.2f} ({first:.2f} to {third:.2f})"


def footer(report: Mapping[str, Any]) -> str:
    """Return the line under a table."""
    return f"`{report['command']}`, commit {report['commit']}, {report['versions']}"


def write_report(report: Mapping[str, Any], text: str, path: str | None) -> None:
    """Print a report's text and its footer; write all numbers to ``path``, if one is named."""
    print(f"{text}\n\n{footer(report)}")
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
