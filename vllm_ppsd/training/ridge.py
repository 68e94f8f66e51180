"""Closed-form start: an affine map from the head's features to the final state.

Ridge regression of the target's final normed state on the untrained head's features,
and on the states of later stages where the head reads them. With it the first loss is
that of a usable head.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from vllm_ppsd.exit_head.deeper import even
from vllm_ppsd.training.dataset import Batch
from vllm_ppsd.training.head import TrainableHead


@torch.no_grad()
def fit_output_map(head: TrainableHead, batches: Iterable[Batch], penalty: float = 1e-3) -> None:
    """Set ``head.map`` and ``head.deeper_out`` to the ridge solution over ``batches``.

    Minimises ``|X W + b - F|² + penalty · n · mean(diag XᵀX / n) |W|²`` over the rows
    X of features (and deeper states) and F of final states, in float64; the bias is not penalised.

    Args:
        batches: with ``final`` set.
    """
    assert head.map is not None
    hidden = head.map.in_features
    size = hidden * (1 + len(head.deeper_out))
    gram = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    cross = torch.zeros(size + 1, hidden, dtype=torch.float64)
    for batch in batches:
        assert batch.final is not None
        found = head.features(batch.states, batch.lengths, batch.rows, batch.deeper)
        parts = [found.cpu().double(), torch.ones(len(found), 1, dtype=torch.float64)]
        if batch.deeper is not None:
            parts.insert(1, even(batch.deeper[batch.rows].float()).flatten(1).cpu().double())
        x = torch.cat(parts, dim=1)
        gram += x.T @ x
        cross += x.T @ batch.final.cpu().double()
    ridge = penalty * gram.diagonal()[:size].mean()
    gram.diagonal()[:size] += ridge
    solution = torch.linalg.solve(gram, cross)
    maps = [head.map, *head.deeper_out]
    for found, rows in zip(maps, solution[:size].split(hidden), strict=True):
        found.weight.copy_(rows.T)
    head.map.bias.copy_(solution[size])
