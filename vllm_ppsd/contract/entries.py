"""What a contract is made of: one entry for each definition of vLLM's that PPSD relies on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["hook", "override", "call", "meaning", "field"]
"""``hook``: replaced at run time; ``override``: our method takes the place of vLLM's; ``call``:
we call it by its signature; ``meaning``: ours holds only while it does what it does; ``field``:
we read or write it."""


@dataclass(frozen=True)
class Entry:
    """One definition of vLLM's that PPSD relies on.

    Attributes:
        kind: in what way.
        ours: dotted name of the package, module, class or function of ours that does. Of a
            hook, it takes vLLM's function and returns the replacement.
        target: vLLM's definition, such as ``vllm.v1.request:Request.status``.
        digest: of the definition that ours was written for (``contract.source``).
        why: one sentence for ``vllm-ppsd doctor`` and ``patches/README.md``.
        platform: vLLM platform that needs it ("cpu", "cuda"), or None for all.
    """

    kind: Kind
    ours: str
    target: str
    digest: str
    why: str
    platform: str | None = None

    @property
    def name(self) -> str:
        """Of a hook, that of its diff in ``patches``; else the target's without its module."""
        if self.kind == "hook":
            return self.ours.rpartition(".")[2].replace("_", "-")
        return self.target.partition(":")[2]


@dataclass(frozen=True)
class Contract:
    """What PPSD relies on in one vLLM series.

    Attributes:
        version: the vLLM version that the digests are of.
        files: ``source.files_digest`` of that version's files; where it fits, so does all else.
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
