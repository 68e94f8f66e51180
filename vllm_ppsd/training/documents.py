"""The documents of the training text, and their form on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Document:
    """One prompt with the target's answer, or plain text with no prompt.

    Attributes:
        prompt: token ids.
        output: token ids that the target wrote (or the plain text's).
        temperature: at which the answer was sampled.
        source: where the prompt came from.
    """

    prompt: list[int]
    output: list[int]
    temperature: float
    source: str

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.output)


def write_documents(documents: Sequence[Document], path: Path) -> None:
    """Write documents as JSONL."""
    path.write_text("".join(json.dumps(document.__dict__) + "\n" for document in documents))


def read_documents(path: Path) -> Iterator[Document]:
    """Read what ``write_documents`` wrote."""
    for line in path.read_text().splitlines():
        yield Document(**json.loads(line))
