"""The synthetic drafter: recorded output, right with a chosen probability."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.config.ppsd import SyntheticDrafter

logger = init_logger("vllm.plugins.ppsd")


def write_record(path: str | Path, outputs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> None:
    """Write (prompt token ids, output token ids) pairs as a record, whole or not at all."""
    target = Path(path)
    staging = target.with_name(f".{target.name}.part")
    with staging.open("w") as file:
        for prompt, output in outputs:
            line = {"prompt_token_ids": list(prompt), "output_token_ids": list(output)}
            file.write(json.dumps(line) + "\n")
    staging.rename(target)


class RecordedDrafts:
    """Drafts from a record.

    Args:
        outputs: recorded output tokens by prompt tokens.
        acceptance: probability that a draft is the recorded token.
        seed: seed of the choice.
        vocab_size: drafts lie in ``range(vocab_size)``.
    """

    def __init__(
        self,
        outputs: dict[tuple[int, ...], list[int]],
        acceptance: float,
        seed: int,
        vocab_size: int,
    ) -> None:
        self._outputs = outputs
        self.acceptance = acceptance
        self._seed = seed
        self._vocab_size = vocab_size
        self._unknown: set[str] = set()

    @classmethod
    def load(cls, config: SyntheticDrafter, vocab_size: int) -> RecordedDrafts:
        """Read the record.

        Raises:
            PPSDConfigError: a line is no recorded output.
        """
        outputs: dict[tuple[int, ...], list[int]] = {}
        with Path(config.record).open() as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = json.loads(line)
                    outputs[tuple(entry["prompt_token_ids"])] = entry["output_token_ids"]
                except (ValueError, KeyError, TypeError) as error:
                    raise PPSDConfigError(
                        f"{config.record}, line {number}: no recorded output ({error!r})"
                    ) from None
        return cls(outputs, config.acceptance, config.seed, vocab_size)

    def draft(self, request: Any, position: int) -> int:
        """Return the draft for ``position`` of a request.

        Past the end of the recorded output, or for a prompt that was not recorded,
        the draft is token 0, as good as wrong; the latter is logged once a request.
        """
        prompt = tuple(request.prompt_token_ids)
        output = self._outputs.get(prompt)
        if output is None:
            if request.req_id not in self._unknown:
                self._unknown.add(request.req_id)
                logger.warning(
                    "PPSD: synthetic drafter: the prompt of request %s is not in the "
                    "record; its drafts are misses",
                    request.req_id,
                )
            return 0
        index = position - len(prompt)
        if index >= len(output):
            return 0
        choice = random.Random(f"{self._seed}:{hash(prompt)}:{index}").random()
        right = output[index]
        return right if choice < self.acceptance else (right + 1) % self._vocab_size
