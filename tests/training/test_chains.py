"""Chains of continuations: all of a batch at once are what one at a time is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.states import write_states
from support.tiny import make_tiny_model

from vllm_ppsd.exit_head.create import describe_target, head_config
from vllm_ppsd.training.build import read_lm_head, untrained
from vllm_ppsd.training.chains import chains_of
from vllm_ppsd.training.dataset import Batch, StateSet
from vllm_ppsd.training.head import TrainableHead

STEPS = 4


def head_and_batch(
    path: Path, layers: int = 1, family: str = "llama"
) -> tuple[TrainableHead, Batch]:
    model = str(make_tiny_model(path / "tiny", family))
    documents = [(3, 20), (2, 2), (9, 16)]
    write_states(path / "states", documents, exit_layer=3, lm_head=read_lm_head(model))
    states = StateSet(path / "states", 3)
    config = head_config(
        describe_target(Path(model)),
        exit_layer=3,
        head_type="transformer",
        num_layers=layers,
        output_map=True,
        steps=STEPS,
    )
    head, _ = untrained(model, config, None)
    torch.manual_seed(0)
    for parameter in (head.fuse.weight, head.fuse.bias, head.map.weight):
        torch.nn.init.normal_(parameter, std=0.1)
    return head, states.batch(states.documents, final=True)


def one_at_a_time(
    head: TrainableHead, batch: Batch, row: int, known: torch.Tensor | None
) -> list[torch.Tensor]:
    """Return a chain's logits: its document up to the row, and every step as a token more."""
    at = int(batch.rows[row])
    start = max(s for s in (0, *torch.tensor(batch.lengths).cumsum(0).tolist()) if s <= at)
    inputs = head.input(batch.states[start : at + 1])
    logits = []
    for step in range(STEPS):
        length = len(inputs)
        hidden = head._through(inputs, torch.arange(length), (length,), None)
        final = head._mapped(head.norm(hidden[-1:]))
        logits.append(head.logits(final)[0])
        if step == 0 and known is not None:
            final = known[None]
        inputs = torch.cat([inputs, head.fused(final, batch.next[row + step][None])])
    return logits


@pytest.mark.parametrize("known", [0.0, 0.5])
@pytest.mark.parametrize(
    # The last two have a window of 16 tokens, and one of them a soft cap.
    ("layers", "family"),
    [(1, "llama"), (2, "llama"), (1, "gemma3"), (2, "gemma2")],
)
@torch.no_grad()
def test_a_chain_sees_the_exit_states_before_it_and_its_own_steps(
    tmp_path: Path, layers: int, family: str, known: float
):
    head, batch = head_and_batch(tmp_path, layers, family)
    torch.manual_seed(1)
    chains = chains_of(batch, STEPS, known)
    # The document of two rows has none.
    assert chains.starts.tolist() == [*range(17), *range(20, 33)]
    by_step = head(batch.states, batch.lengths, batch.rows, chains=chains)
    assert len(by_step) == STEPS and len(by_step[0]) == len(batch.rows)
    assert chains.is_known is None or 0 < chains.is_known.sum() < len(chains.starts)
    for chain, row in enumerate(chains.starts.tolist()):
        state = chains.known[chain] if known and chains.is_known[chain] else None
        expected = one_at_a_time(head, batch, row, state)
        torch.testing.assert_close(by_step[0][row], expected[0], atol=1e-3, rtol=1e-3)
        for step in range(1, STEPS):
            torch.testing.assert_close(by_step[step][chain], expected[step], atol=1e-3, rtol=1e-3)
            assert chains.rows(step + 1)[chain] == row + step


def test_gradients_of_every_step_reach_all_parts(tmp_path: Path):
    head, batch = head_and_batch(tmp_path)
    by_step = head(batch.states, batch.lengths, batch.rows, chains=chains_of(batch, STEPS))
    for logits in by_step[1:]:
        head.zero_grad()
        logits.square().sum().backward(retain_graph=True)
        assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_without_room_for_a_chain_step_1_is_run_alone(tmp_path: Path):
    head, batch = head_and_batch(tmp_path)
    states = StateSet(tmp_path / "states", 3)
    batch = states.batch(states.documents[2:])
    assert len(head(batch.states, batch.lengths, batch.rows, chains=chains_of(batch, STEPS))) == 1
