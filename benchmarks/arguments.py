"""What the benchmarks' command lines have in common."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from vllm_ppsd.tools.prompts import OWN


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--json", help="write all numbers to this file")
    return made


def add_model(to: argparse.ArgumentParser) -> None:
    """Add a model and its exit head."""
    to.add_argument("model", help="folder of the model")
    to.add_argument("--head", default="ppsd", help="exit head")


def add_prompts(to: argparse.ArgumentParser, limit: int | None, tokens: int) -> None:
    """Add what is asked: prompts, how many of each set, and how much is answered."""
    to.add_argument("--prompts", type=Path, default=OWN, help="JSONL file or folder")
    to.add_argument("--limit", type=int, default=limit, help="prompts per set")
    to.add_argument("--tokens", type=int, default=tokens, help="output tokens per prompt")


def shared_cores(stages: int) -> str:
    """Return a core for every stage in vLLM's notation; stages share cores if they are few."""
    own = sorted(os.sched_getaffinity(0))
    return "|".join(str(own[stage % len(own)]) for stage in range(stages))
