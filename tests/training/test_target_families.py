"""Every architecture is trained for as transformers computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import tiny
from support.families import FAMILIES, make_family
from support.tiny import NUM_LAYERS, VOCAB_SIZE
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vllm_ppsd.exit_head.architectures import ARCHITECTURES
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder, save
from vllm_ppsd.exit_head.create import describe_target, head_config
from vllm_ppsd.training.build import checkpoint_tensors, trained, untrained
from vllm_ppsd.training.dataset import Batch
from vllm_ppsd.training.generate import Document
from vllm_ppsd.training.loss import DIVERGENCE, distillation_loss
from vllm_ppsd.training.recipe import Cache
from vllm_ppsd.training.states import TARGET, _shard
from vllm_ppsd.training.target import Target

CPU = torch.device("cpu")
EXIT_LAYER, TOP = 3, 8
LENGTHS = [(4, 36), (20, 8), (2, 30)]


def test_every_architecture_has_a_family():
    kinds = [getattr(transformers, config).model_type for config, _ in tiny.FAMILIES.values()]
    assert {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind] for kind in kinds} == set(ARCHITECTURES)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("models") / family, family)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    """Random tokens, some longer than the tiny models' windows."""
    tokens = torch.Generator().manual_seed(0)
    return [
        Document(
            torch.randint(3, VOCAB_SIZE, (prompt,), generator=tokens).tolist(),
            torch.randint(3, VOCAB_SIZE, (answer,), generator=tokens).tolist(),
            0.0,
            "random",
        )
        for prompt, answer in LENGTHS
    ]


@pytest.fixture(scope="module")
def target(model: Path) -> Target:
    return Target(str(model), CPU, torch.float32)


@pytest.fixture(scope="module")
def batch(target: Target, documents: list[Document]) -> Batch:
    """The documents as they are trained on, their states not rounded."""
    shard = _shard(target, documents, Cache(top_k=TOP), [EXIT_LAYER], CPU)[TARGET]
    tokens = torch.tensor([t for d in documents for t in d.prompt + d.output])
    lengths = tuple(d.length for d in documents)
    states, final = target.run(tokens, lengths, [EXIT_LAYER])
    return Batch(
        states=states[EXIT_LAYER].clone(),
        lengths=lengths,
        rows=shard["rows"].long(),
        next=shard["next"].long(),
        top_ids=shard["top_ids"].long(),
        top_logprobs=shard["top_logprobs"].float(),
        final=final[shard["rows"].long()],
    )


@pytest.fixture(scope="module")
def own(model: Path) -> Any:
    """The model as transformers computes it."""
    return AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )


@torch.inference_mode()
def said(own: Any, documents: list[Document], layers: int = NUM_LAYERS) -> torch.Tensor:
    """Return the probabilities by the model's first ``layers``, [tokens, vocabulary]."""
    whole = own.model.layers
    own.model.layers = whole[:layers]
    try:
        logits = [
            own(torch.tensor([d.prompt + d.output]), use_cache=False).logits[0] for d in documents
        ]
    finally:
        own.model.layers = whole
    return torch.cat(logits).softmax(dim=-1)


def test_cached_distributions_are_the_models_own(
    own: Any, target: Target, documents: list[Document], batch: Batch
):
    expected = said(own, documents)[batch.rows]
    assert batch.final is not None
    packed = target.logits(batch.final).softmax(dim=-1)
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-4)
    top = expected.topk(TOP).values
    # The cache holds logarithms in half precision.
    torch.testing.assert_close(batch.top_logprobs, top.log(), rtol=2e-3, atol=1e-3)
    cached = expected.gather(1, batch.top_ids)
    torch.testing.assert_close(cached, top, rtol=0, atol=1e-4)


def test_the_comparison_before_caching_passes(target: Target, documents: list[Document]):
    target.check([d.prompt + d.output for d in documents])


def test_a_new_head_is_the_targets_first_layers_and_learns(
    model: Path,
    own: Any,
    documents: list[Document],
    batch: Batch,
    tmp_path: Path,
):
    described = describe_target(model)
    kind = ARCHITECTURES[described.architecture]
    config = head_config(
        described,
        exit_layer=EXIT_LAYER,
        head_type="transformer" if kind.transformer_heads else "lens",
        num_layers=NUM_LAYERS - EXIT_LAYER,
        output_map=True,
    )
    head, vocabulary = untrained(str(model), config, None)
    with torch.no_grad():
        (initial,) = head(batch.states, batch.lengths, torch.arange(len(batch.states)))
    expected = said(own, documents, EXIT_LAYER + config.num_layers)
    torch.testing.assert_close(initial.softmax(dim=-1), expected, rtol=0, atol=1e-4)
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3)
    losses = []
    with torch.no_grad():
        # A head of all the layers that are left has nothing to learn.
        for parameter in head.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    for _ in range(3):
        (logits,) = head(batch.states, batch.lengths, batch.rows)
        loss = distillation_loss(logits, batch, vocabulary, DIVERGENCE)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
    assert all(p.grad is not None for p in head.parameters())
    save(tmp_path / "head", config, checkpoint_tensors(head, vocabulary))
    again, _ = trained(ExitHeadFolder.open(tmp_path / "head"), str(model))
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, head.state_dict()[name].bfloat16().float()), name
