"""Read prompts from JSONL files, one object a line, and put them in the chat template."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.files import read_json_lines, reading
from vllm_ppsd.tools.prompt_rows import user_turn

OWN = Path(__file__).parent / "prompts.jsonl"
"""A few prompts that come with the package."""


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
        PPSDConfigError: a file is missing, empty or no text, or a line is no prompt; names
            the file and the line.
    """
    prompts: dict[str, Prompt] = {}
    for path in _files(paths):
        lines = [_prompt(path, number, row) for number, row in read_json_lines(path)]
        if not lines:
            raise PPSDConfigError(f"{path} holds no prompts: write one JSON object a line")
        for prompt in lines:
            prompts.setdefault(prompt.text, prompt)
    return list(prompts.values())


def first_of_each(path: Path, limit: int | None) -> list[Prompt]:
    """Return the first ``limit`` prompts (None: all) of every set in a file or folder.

    Raises:
        PPSDConfigError: as of ``read_prompts``.
    """
    sets: dict[str, list[Prompt]] = {}
    for prompt in read_prompts([path]):
        sets.setdefault(prompt.source, []).append(prompt)
    return [prompt for prompts in sets.values() for prompt in prompts[:limit]]


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
        with reading(path):
            inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
            if not inside or not all(file.is_file() for file in inside):
                raise PPSDConfigError(f"{path} is no prompt file and no folder with *.jsonl files")
        files += inside
    return files


def _prompt(path: Path, number: int, row: Any) -> Prompt:
    try:
        return Prompt(user_turn(row), path.stem)
    except ValueError as error:
        raise PPSDConfigError(f"{path}, line {number}: no prompt: {error}") from None
