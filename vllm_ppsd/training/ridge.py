"""Closed-form start: an affine map from the head's features to the final state.

Ridge regression of the target's final normed state on the untrained head's
features. With it the first loss is that of a usable head.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from vllm_ppsd.training.dataset import Batch
from vllm_ppsd.training.head import TrainableHead


@torch.no_grad()
def fit_output_map(head: TrainableHead, batches: Iterable[Batch], penalty: float = 1e-3) -> None:
    """Set ``head.map`` to the ridge solution over ``batches``.

    Minimises ``|X W + b - F|² + penalty · n · mean(diag XᵀX / n) |W|²`` over the rows
    X of features and F of final states, in float64; the bias is not penalised.

    Args:
        batches: with ``final`` set.
    """
    assert head.map is not None
    size = head.map.in_features
    gram = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    cross = torch.zeros(size + 1, size, dtype=torch.float64)
    for batch in batches:
        assert batch.final is not None
        found = head.features(batch.states, batch.lengths, batch.rows, batch.deeper)
        x = found.cpu().double()
        x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
        gram += x.T @ x
        cross += x.T @ batch.final.cpu().double()
    ridge = penalty * gram.diagonal()[:size].mean()
    gram.diagonal()[:size] += ridge
    solution = torch.linalg.solve(gram, cross)
    head.map.weight.copy_(solution[:size].T)
    head.map.bias.copy_(solution[size])
