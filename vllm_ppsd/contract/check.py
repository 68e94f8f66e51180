"""Whether a vLLM is the one that PPSD was written for; the hooks go in only if it is."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from vllm_ppsd.contract.entries import Contract, Entry
from vllm_ppsd.contract.hook import HookError, install, replaced_by_others
from vllm_ppsd.contract.series import contract_for, installed_vllm, is_supported, supported
from vllm_ppsd.contract.source import digests, files_digest, installed_source


@dataclass(frozen=True)
class Mismatch:
    """A definition that is not the one that PPSD relies on.

    Attributes:
        entry: of the table.
        digest: of what is there, or None if nothing is.
    """

    entry: Entry
    digest: str | None

    def __str__(self) -> str:
        entry = self.entry
        if self.digest is None:
            what = f"{entry.target} is not there"
        else:
            what = f"{entry.target} has changed (digest {self.digest}, expected {entry.digest})"
        return f"{what}; {entry.ours} relies on it: {entry.why}"


def mismatches(contract: Contract, folder: Path) -> list[Mismatch]:
    """Compare a contract with the Python files of a vLLM, which is not imported.

    Args:
        contract: of some vLLM series.
        folder: holds ``vllm/``.
    """
    present = digests(folder, contract.targets)
    return [
        Mismatch(entry, present[entry.target])
        for entry in contract.entries
        if present[entry.target] != entry.digest
    ]


@functools.cache
def problems(platform: str) -> list[str]:
    """Why PPSD does not fit the installed vLLM on a platform; empty if it does."""
    installed = installed_vllm()
    if installed is None or not is_supported(installed[1]):
        what = " ".join(installed) if installed else "not there"
        return [f"this release is for vLLM {', '.join(supported())}, and the installed is {what}"]
    contract, folder = contract_for(installed[1]), installed_source()
    # Every vLLM process comes by here: reading the files takes milliseconds, parsing them half
    # a second.
    if files_digest(folder, contract.targets) == contract.files:
        return []
    return [
        str(each)
        for each in mismatches(contract, folder)
        if each.entry.platform in (None, platform)
    ]


def install_all() -> None:
    """Install every hook that this platform needs, or none.

    All of the contract is checked first, in every vLLM process and whether or not PPSD is asked
    for: the hooks must not be there if it does not hold, and the workers of another node may
    run another vLLM.

    Raises:
        HookError: something does not fit; the message names the first three.
    """
    from vllm.platforms import current_platform

    platform = current_platform.device_type
    reasons = problems(platform)
    if not reasons:
        installed = installed_vllm()
        assert installed is not None
        hooks = [h for h in contract_for(installed[1]).hooks if h.platform in (None, platform)]
        reasons = [reason for hook in hooks if (reason := replaced_by_others(hook))]
    if reasons:
        more = [f"and {len(reasons) - 3} more"] if len(reasons) > 3 else []
        raise HookError("; ".join([*reasons[:3], *more]))
    for hook in hooks:
        install(hook)
