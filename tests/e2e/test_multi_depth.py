"""A multi-depth head: states come back from later stages, and the output stays the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import engine as e
from support.runners import V2_IN_LONG_RUNS

from vllm_ppsd.exit_head.checkpoint import save
from vllm_ppsd.exit_head.create import describe_target, head_config, initial_tensors

pytestmark = [pytest.mark.e2e, *V2_IN_LONG_RUNS]

PROMPTS = [list(range(5, 25)), list(range(40, 43)), list(range(100, 220))]
GREEDY = e.params(32)
SAMPLED = e.params(32, temperature=0.9, seed=7)


def multi_depth_head(model: Path, folder: Path, deeper_layers: list[int]) -> str:
    """A head to which deeper states matter: other ones would be other drafts."""
    config = head_config(
        describe_target(model), exit_layer=3, head_type="transformer", deeper_layers=deeper_layers
    )
    tensors = initial_tensors(str(model), config)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.startswith("deeper_")]:
        noise = torch.randn(tensors[name].shape, generator=generator)
        tensors[name] = (0.02 * noise).to(tensors[name].dtype)
    save(folder, config, tensors)
    return str(folder)


def outputs(llm) -> list[e.Output]:
    alone = [e.generate(llm, prompt, how) for prompt in PROMPTS for how in (GREEDY, SAMPLED)]
    return alone + e.generate_staggered(llm, PROMPTS, GREEDY, every=3)[:1]


@pytest.mark.parametrize("deeper_layers", [[6], pytest.param([5, 6], marks=pytest.mark.long)])
def test_output_is_bit_identical(tiny_llama: Path, tmp_path: Path, deeper_layers: list[int]):
    stages = len(deeper_layers) + 1
    head = multi_depth_head(tiny_llama, tmp_path / "head", deeper_layers)
    with e.engine(tiny_llama, stages=stages, ppsd={"model": head} | e.PLAIN) as plain:
        expected = outputs(plain)
    with e.engine(tiny_llama, stages=stages, ppsd={"model": head}) as llm:
        found = outputs(llm)
        e.assert_drafted(llm)
    assert found[:-1] == expected[:-1]
    assert found[-1].tokens == expected[-1].tokens or e.tipped(expected[-1], found[-1])
