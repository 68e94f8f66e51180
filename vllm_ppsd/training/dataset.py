"""The cached states as packed training batches.

A multi-depth head also reads a diagonal through the pipeline: when stage 0 has run token
t, the second stage has run token t - 1, the third t - 2, and so on, so the state of token
t - i behind stage i + 1 is the deepest there is of it. Prompts go through the pipeline at
once; of their tokens only the last one's states are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.files import open_tensors
from vllm_ppsd.training.states import TARGET, exit_name


@dataclass(frozen=True)
class Batch:
    """Packed documents.

    Attributes:
        states: [tokens, hidden], bfloat16.
        lengths: tokens per document.
        rows: int64 [rows], positions in ``states`` that are trained on.
        next: int64 [rows], the token that follows.
        top_ids: int64 [rows, k], the target's most probable tokens, best first.
        top_logprobs: float32 [rows, k].
        final: [rows, hidden] bfloat16, the LM head's input, if asked for.
        deeper: [tokens, later stages, hidden] bfloat16, what a multi-depth head reads
            besides ``states``.
    """

    states: torch.Tensor
    lengths: tuple[int, ...]
    rows: torch.Tensor
    next: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor
    final: torch.Tensor | None = None
    deeper: torch.Tensor | None = None

    def at(self, rows: torch.Tensor) -> Batch:
        """Return what the target says at some rows; int64 indices of them."""
        return replace(
            self,
            rows=self.rows[rows],
            next=self.next[rows],
            top_ids=self.top_ids[rows],
            top_logprobs=self.top_logprobs[rows],
            final=None if self.final is None else self.final[rows],
        )

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``."""
        tensors = {n: v.to(device) for n, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Place:
    """A document's place in its shard: tokens from, to; rows from, to."""

    shard: int
    source: str
    start: int
    end: int
    first_row: int
    last_row: int

    @property
    def length(self) -> int:
        return self.end - self.start


class StateSet:
    """Documents of cached states, read from disk when they are needed.

    Args:
        folder: ``work/states``.
        exit_layer: whose states are the input.
        deeper_layers: of a multi-depth head, the ends of the later stages.
        shards: how many are used; None for all.

    Raises:
        TrainingError: there are no states for this exit layer, or a shard is damaged.
    """

    def __init__(
        self,
        folder: Path,
        exit_layer: int,
        deeper_layers: Sequence[int] = (),
        shards: int | None = None,
    ) -> None:
        self._files: list[tuple[Any, list[Any]]] = []
        self._depths = len(deeper_layers)
        layers = cached_layers(exit_layer, deeper_layers)
        self.documents: list[Place] = []
        for path in sorted((folder / TARGET).glob("*.safetensors"))[:shards]:
            file = open_tensors(path, TrainingError)
            try:
                self.documents += _places(len(self._files), file)
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                raise TrainingError(
                    f"{path} is no shard of states ({error!r}); remove it, and it is cached again"
                ) from None
            cached = [_open_states(folder, layer, path.name) for layer in layers]
            self._files.append((file, cached))
        if not self.documents:
            raise TrainingError(f"{folder} holds no states; cache them first")

    def split(self, held_out: int, seed: int) -> tuple[list[Place], list[Place]]:
        """Return (training, validation) documents; ``held_out`` of the latter.

        With more documents some of the new ones are held out in place of old ones, but
        none that was trained on before: a head that goes on from another on more text
        is still judged by what neither has seen.

        Raises:
            TrainingError: nothing would be left to train on.
        """
        if held_out >= len(self.documents):
            raise TrainingError(
                f"{held_out} validation documents leave none of {len(self.documents)} to train "
                "on; lower validation_documents or use more prompts"
            )

        def lot(place: Place) -> bytes:
            # It does not depend on the other documents.
            return hashlib.sha256(f"{seed} {place.shard} {place.start}".encode()).digest()

        order = sorted(self.documents, key=lot)
        return order[held_out:], order[:held_out]

    def batch(self, documents: Sequence[Place], final: bool = False) -> Batch:
        """Pack documents into one batch."""
        parts: dict[str, list[torch.Tensor]] = {}
        offset = 0
        for place in documents:
            file, (exits, *later) = self._files[place.shard]

            def rows_of(name: str, file: Any = file, place: Place = place) -> torch.Tensor:
                read: torch.Tensor = file.get_slice(name)[place.first_row : place.last_row]
                return read

            rows = rows_of("rows").long() - place.start
            tensors = {
                "states": exits.get_slice("states")[place.start : place.end],
                "rows": rows + offset,
                "next": rows_of("next").long(),
                "top_ids": rows_of("top_ids").long(),
                "top_logprobs": rows_of("top_logprobs").float(),
            }
            if final:
                tensors["final"] = rows_of("final")
            if self._depths:
                answered = slice(place.start + int(rows[0]), place.start + int(rows[-1]) + 1)
                depths = [states.get_slice("states")[answered] for states in later]
                tensors["deeper"] = diagonal(
                    [*depths, rows_of("final")], place.length, int(rows[0])
                )
            for name, tensor in tensors.items():
                parts.setdefault(name, []).append(tensor)
            offset += place.length
        packed = {name: torch.cat(pieces) for name, pieces in parts.items()}
        return Batch(lengths=tuple(place.length for place in documents), **packed)

    def token_counts(self, documents: Sequence[Place], vocab_size: int) -> torch.Tensor:
        """Return how often the target wrote each token, or might have: float64 [vocabulary].

        A written token counts one, and every token of a position's top-k counts its
        probability, which tells more about tokens that a short text happens to lack.
        """
        counts = torch.zeros(vocab_size, dtype=torch.float64)
        for document in documents:
            file = self._files[document.shard][0]
            rows = slice(document.first_row, document.last_row)
            counts += torch.bincount(file.get_slice("next")[rows], minlength=vocab_size)
            probabilities = file.get_slice("top_logprobs")[rows].double().exp().flatten()
            counts.index_add_(0, file.get_slice("top_ids")[rows].flatten(), probabilities)
        return counts


def cached_layers(exit_layer: int, deeper_layers: Sequence[int]) -> list[int]:
    """Return the layers whose states a head reads; of the last stage the final state is."""
    return [exit_layer, *deeper_layers[:-1]]


def diagonal(depths: Sequence[torch.Tensor], length: int, first: int) -> torch.Tensor:
    """Return what the head reads of one document besides its exit states.

    Args:
        depths: per later stage, [answered, hidden], the states of the tokens from
            ``first`` on.
        length: tokens of the document.
        first: its first token with states: the prompt's last.

    Returns:
        [length, later stages, hidden]; zero where there is no state.
    """
    deeper = depths[0].new_zeros(length, len(depths), depths[0].shape[-1])
    for place, states in enumerate(depths):
        start = first + place + 1
        count = min(len(states), length - start)
        if count > 0:
            deeper[start : start + count, place] = states[:count]
    return deeper


def _open_states(folder: Path, layer: int, name: str) -> Any:
    path = folder / exit_name(layer) / name
    if not path.is_file():
        raise TrainingError(f"{path} is missing: the states of layer {layer} are not cached")
    return open_tensors(path, TrainingError)


def _places(shard: int, file: Any) -> list[Place]:
    sources = json.loads(file.metadata()["sources"])
    lengths = file.get_tensor("lengths").tolist()
    rows = file.get_tensor("rows")
    starts = torch.tensor([0, *lengths]).cumsum(0)
    edges = torch.searchsorted(rows.long(), starts).tolist()
    bounds = starts.tolist()
    return [
        Place(shard, sources[i], bounds[i], bounds[i + 1], edges[i], edges[i + 1])
        for i in range(len(lengths))
        if edges[i + 1] > edges[i]
    ]
