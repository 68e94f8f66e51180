"""The model card beside a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_ppsd.costs import ideal_speedup
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.training.recipe import Recipe
from vllm_ppsd.training.validation import Validation, buckets


def write_card(
    path: Path,
    recipe: Recipe,
    config: ExitHeadConfig,
    found: Validation,
    origin: dict[str, Any],
    stages: int,
) -> None:
    """Write ``README.md`` for a head: what it is, how good, made how."""
    vocabulary = config.draft_vocab_size or config.target.vocab_size
    positions = "\n".join(
        f"| {name} | {_share(share)} |"
        for name, share in zip(buckets(), found.by_position, strict=True)
    )
    layers = f" with {config.num_layers} decoder layer(s)" if config.num_layers else ""
    if config.start_layer is not None:
        layers += f" that started from the target's behind layer {config.start_layer}"
    path.write_text(f"""# Exit head behind layer {config.exit_layer}

A {config.head_type} head{layers} for {Path(recipe.model).name}
({config.target.architecture}, {config.target.num_hidden_layers} layers), drafting
{vocabulary} of {config.target.vocab_size} tokens. It fits that model only
(`{config.target.fingerprint}`).

Acceptance on {found.rows} held-out tokens: **{found.acceptance:.3f}** (share of drafts that are the
next token of the target's own text, greedy and sampled as trained); agreement with the target's
argmax {found.agreement:.3f}; expected speedup {ideal_speedup(stages, found.acceptance):.2f} over
a plain pipeline of {stages} equal stages.

| answer position | acceptance |
| --- | --- |
{positions}

Trained by self-distillation on {origin["answer_tokens"]} tokens that the target wrote in
{origin["documents"]} answers. Recipe: `recipe.yaml`; command, versions and hashes of the data:
`origin.json`; log: `log.jsonl`; curves: `curves.png`.
""")


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.3f}"
