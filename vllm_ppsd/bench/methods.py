"""The names of the ways of decoding that ``vllm-ppsd bench`` compares."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class Method(StrEnum):
    """A way of decoding, in the order in which they take turns."""

    PLAIN = "plain"
    PPSD = "ppsd"
    NGRAM = "ngram"
    SINGLE = "single"
    TRANSFORMERS = "transformers"
    EARLY_EXIT = "early-exit"

    def label(self, partition: Sequence[int]) -> str:
        """Return what tables call it, for a pipeline of so many layers per stage."""
        stages = f"{len(partition)} stages"
        return {
            Method.PLAIN: f"plain pipeline, {stages}",
            Method.PPSD: f"PPSD, {stages}",
            Method.NGRAM: "n-gram, one device",
            Method.SINGLE: "plain, one device",
            Method.TRANSFORMERS: "Transformers, plain",
            Method.EARLY_EXIT: f"Transformers, assistant_early_exit={partition[0]}",
        }[self]
