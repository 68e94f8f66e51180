"""Read prompts, one JSON object a line, and put them in the chat template.

A prompt is ``turns[0]``, ``prompt`` or ``instruction``, whichever a line has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_ppsd.training.errors import TrainingError

FIELDS = ("turns", "prompt", "instruction")


@dataclass(frozen=True)
class Prompt:
    """One user turn.

    Attributes:
        text: what the user says.
        source: the file's name without its ending.
    """

    text: str
    source: str


def read_prompts(paths: Iterable[str | Path]) -> list[Prompt]:
    """Return the distinct prompts of JSONL files or folders of them, in order.

    Raises:
        TrainingError: a file is missing or empty, or a line is no prompt; names
            the file and the line.
    """
    prompts: dict[str, Prompt] = {}
    for path in _files(paths):
        in_file = [
            _prompt(path, number, line)
            for number, line in enumerate(_lines(path), start=1)
            if line.strip()
        ]
        if not in_file:
            raise TrainingError(f"{path} holds no prompts: write one JSON object a line")
        for prompt in in_file:
            prompts.setdefault(prompt.text, prompt)
    return list(prompts.values())


def chat_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return one user turn in the chat template, or as it is where there is none."""
    if tokenizer.chat_template is None:
        return list(tokenizer.encode(text))
    return list(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    )


def _files(paths: Iterable[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside or not all(file.is_file() for file in inside):
            raise TrainingError(f"{path} is no prompt file and no folder with *.jsonl files")
        files += inside
    return files


def _lines(path: Path) -> list[str]:
    """Split at line feeds only: a JSON string may hold other line separators."""
    return path.read_text(encoding="utf-8").split("\n")


def _prompt(path: Path, number: int, line: str) -> Prompt:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise TrainingError(f"{path}, line {number}: no JSON: {error}") from None
    value: Any = None
    if isinstance(row, dict):
        value = next((row[field] for field in FIELDS if row.get(field)), None)
    if isinstance(value, list):
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise TrainingError(
            f"{path}, line {number}: no prompt; one of the fields {', '.join(FIELDS)} "
            "must hold text"
        )
    return Prompt(value, path.stem)
