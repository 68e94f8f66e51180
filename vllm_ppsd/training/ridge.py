"""Closed-form starts: affine maps in front of the head's layers and behind them.

Ridge regression of a state that the target has on those that the head has. With it the first
loss is that of a usable head.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from vllm_ppsd.exit_head.deeper import rms_normalize
from vllm_ppsd.training.chains import chains_of
from vllm_ppsd.training.dataset import Batch
from vllm_ppsd.training.head import TrainableHead

PENALTY = 1e-3
"""Of the output map, relative to the mean square of its features."""

INPUT_PENALTY = 1e-4
"""Of the input map, relative to the mean square of each of its features, which differ by far."""


class Ridge:
    """Least squares over rows that come in parts, in float64; the bias is not penalised.

    Args:
        inputs: features of a row.
        outputs: what is predicted.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self._gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self._cross = torch.zeros(inputs + 1, outputs, dtype=torch.float64)

    def add(self, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None = None) -> None:
        """Take rows in: [rows, inputs], [rows, outputs], and each one's weight [rows, 1]."""
        ones = torch.ones(len(x), 1, dtype=torch.float64)
        x, y = torch.cat([x.cpu().double(), ones], dim=1), y.cpu().double()
        weighted = x if weight is None else x * weight.cpu().double()
        self._gram += weighted.T @ x
        self._cross += weighted.T @ y

    @property
    def squares(self) -> torch.Tensor:
        """The features' sums of squares, [inputs]."""
        return self._gram.diagonal()[:-1]

    def solve(self, penalties: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights [inputs, outputs] and bias [outputs] for a penalty per feature."""
        gram = self._gram.clone()
        gram.diagonal()[:-1] += penalties
        solution = torch.linalg.solve(gram, self._cross)
        return solution[:-1], solution[-1]


@torch.no_grad()
def fit_output_map(head: TrainableHead, batches: Iterable[Batch]) -> None:
    """Set ``head.map`` and ``head.deeper_out`` to the ridge solution over ``batches``.

    Minimises ``|X W + b - F|² + PENALTY · n · mean(diag XᵀX / n) |W|²`` over the rows
    X of features (and deeper states) and F of final states.

    Args:
        batches: with ``final`` set.
    """
    assert head.map is not None
    hidden = head.map.in_features
    ridge = Ridge(hidden * (1 + len(head.deeper_out)), hidden)
    for batch in batches:
        assert batch.final is not None
        features = head.features(batch.states, batch.lengths, batch.rows, batch.deeper)
        deeper = None if batch.deeper is None else batch.deeper[batch.rows]
        ridge.add(_with(features, deeper), batch.final)
    squares = ridge.squares
    _set([head.map, *head.deeper_out], *ridge.solve((PENALTY * squares.mean()).expand_as(squares)))


@torch.no_grad()
def fit_input_map(head: TrainableHead, batches: Iterable[tuple[Batch, torch.Tensor]]) -> None:
    """Set ``head.input_map`` and ``head.deeper_in`` to the ridge solution over ``batches``.

    They predict what the target's layers add between the exit and the head's first layer.
    Every token counts by the inverse mean square of the state it is to become, so that
    the few tokens with huge states do not decide alone.

    Args:
        batches: each with the target's states before the layer that the head's first layer
            started from, [tokens, hidden].
    """
    assert head.input_map is not None
    hidden = head.input_map.in_features
    ridge = Ridge(hidden * (1 + len(head.deeper_in)), hidden)
    for batch, goal in batches:
        states, goal = batch.states.double(), goal.double()
        weight = 1 / goal.square().mean(dim=1, keepdim=True)
        ridge.add(_with(states, batch.deeper), goal - states, weight)
    _set([head.input_map, *head.deeper_in], *ridge.solve(INPUT_PENALTY * ridge.squares))


@torch.no_grad()
def fit_fusion(head: TrainableHead, batches: Iterable[Batch]) -> None:
    """Set ``head.fuse`` to the ridge solution over ``batches``, for what step 1 reads.

    It predicts that from the final state of the position before, the head's own and the
    target's alike, and the embedding of the token between. Tokens weigh as in
    ``fit_input_map``.

    Args:
        batches: with ``final`` set.
    """
    assert head.fuse is not None and head.embedding is not None
    ridge = Ridge(head.fuse.in_features, head.fuse.out_features)
    for batch in batches:
        assert batch.final is not None
        starts = chains_of(batch, 2).starts
        predicted = head.predicted(batch.states, batch.lengths, batch.rows, batch.deeper)
        embedded = head.embedding[batch.next[starts]].double()
        goal = head.input(batch.states, batch.deeper)[batch.rows[starts + 1]].double()
        weight = 1 / goal.square().mean(dim=1, keepdim=True)
        for final in (predicted, batch.final):
            ridge.add(torch.cat([final[starts].double(), embedded], dim=1), goal, weight)
    _set([head.fuse], *ridge.solve(INPUT_PENALTY * ridge.squares))


def _with(states: torch.Tensor, deeper: torch.Tensor | None) -> torch.Tensor:
    """Return [rows, features]: the states, and deeper ones as a head reads them."""
    if deeper is None:
        return states
    return torch.cat([states.cpu(), rms_normalize(deeper.float()).flatten(1).cpu()], dim=1)


def _set(maps: list[nn.Linear], weights: torch.Tensor, bias: torch.Tensor) -> None:
    """Share the solution out among maps whose results are added; the first has the bias."""
    for one, rows in zip(maps, weights.split(maps[0].in_features), strict=True):
        one.weight.copy_(rows.T)
    maps[0].bias.copy_(bias)
