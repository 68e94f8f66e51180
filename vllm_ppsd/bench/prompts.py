"""The prompts that a measurement asks."""

from __future__ import annotations

from pathlib import Path

from vllm_ppsd.training.prompts import Prompt, read_prompts

OWN = Path(__file__).parent / "prompts.jsonl"


def first_of_each(path: Path, limit: int | None) -> list[Prompt]:
    """Return the first ``limit`` prompts (None: all) of every set in a file or folder."""
    sets: dict[str, list[Prompt]] = {}
    for prompt in read_prompts([path]):
        sets.setdefault(prompt.source, []).append(prompt)
    return [prompt for some in sets.values() for prompt in some[:limit]]
