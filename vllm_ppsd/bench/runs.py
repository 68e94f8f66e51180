"""The runs of a measurement on disk: a line each, so that a stopped one goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_ppsd.bench.methods import Method
from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.files import read_text, write_whole


@dataclass(frozen=True)
class Answer:
    """One request's output.

    Attributes:
        tokens: output token ids.
        ms_per_token: of those behind the first, or behind the first lot of several.
        drafts: retired drafts, where they are counted.
        hits: of those, hits.
    """

    tokens: list[int]
    ms_per_token: float
    drafts: int = 0
    hits: int = 0


@dataclass(frozen=True, order=True)
class Round:
    """One prompt that all contenders answer in turn.

    Attributes:
        temperature: of sampling.
        repeat: number of the repetition, from 0; also the seed.
        prompt: its index.
    """

    temperature: float
    repeat: int
    prompt: int


class Runs:
    """A file of answers, a line for every round, behind a line with the settings."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Open or make the file.

        Args:
            path: the file.
            settings: what all runs in it have in common.

        Raises:
            PPSDConfigError: it holds runs with other settings.
        """
        self._path = path
        self.answers: dict[Round, Mapping[Method, Answer]] = {}
        if path.exists():
            self._read(settings)
        else:
            write_whole(path, lambda file: file.write_text(json.dumps(settings) + "\n"))

    def missing(self, rounds: Sequence[Round]) -> list[Round]:
        """Return those of ``rounds`` that are still to be run."""
        return [one for one in rounds if one not in self.answers]

    def add(self, one: Round, answers: Mapping[Method, Answer]) -> None:
        """Keep a round: it is on disk when this returns."""
        line = asdict(one) | {"answers": {name: asdict(a) for name, a in answers.items()}}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.answers[one] = answers

    def _read(self, settings: dict[str, Any]) -> None:
        text = read_text(self._path)
        # A line without its end was being written when the last run was cut off.
        whole = text[: text.rfind("\n") + 1]
        try:
            first, *lines = whole.splitlines()
            before = dict(json.loads(first))
        except (ValueError, TypeError):
            raise PPSDConfigError(
                f"{self._path} holds no runs; name another folder with -o"
            ) from None
        other = [key for key in settings if before.get(key) != settings[key]]
        if other:
            changed = ", ".join(
                f"{key}: {before.get(key)} there, {settings[key]} now"
                if isinstance(settings[key], str | int)
                else f"other {key}"
                for key in other
            )
            raise PPSDConfigError(
                f"{self._path} holds runs of another measurement ({changed}); name another "
                "folder with -o, or remove this one"
            )
        if whole != text:
            write_whole(self._path, lambda file: file.write_text(whole))
        for number, line in enumerate(lines, start=2):
            try:
                row = json.loads(line)
                answers = row.pop("answers")
                self.answers[Round(**row)] = {
                    Method(name): Answer(**answer) for name, answer in answers.items()
                }
            except (ValueError, TypeError, KeyError, AttributeError):
                raise PPSDConfigError(
                    f"{self._path}, line {number}, is damaged; remove the line, and its round is "
                    "run again"
                ) from None
