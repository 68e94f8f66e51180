"""One device: the cost model for large models, and a model with a small LM head to back it.

A Llama of random weights, whose LM head is a small share of them as in a large model,
runs with the synthetic drafter at chosen acceptance rates. Its rounds and speedups stand
beside the cost model's; then follow the cost model's figures for large shapes.

    python -m benchmarks.shapes [--json results.json]
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import arguments, random_llama
from benchmarks.rounds import (
    PLAIN,
    Turn,
    costs,
    interleaved,
    measured_token_cost,
    modelled_draft_cost,
    summary,
)
from vllm_ppsd.bench import engines
from vllm_ppsd.bench.origin import deliver, footer, origin
from vllm_ppsd.config.layout import ModelShape
from vllm_ppsd.exit_head.create import init_head
from vllm_ppsd.planning.shape import assumed_head
from vllm_ppsd.speedup import best_one_device_speedup, round_cost, tokens_per_round
from vllm_ppsd.worker.synthetic import write_record

LAYERS, EXIT_LAYER, VOCABULARY = 16, 4, 2048
ACCEPTANCES = (0.5, 0.65, 0.8)
DRAFTS = (1, 2, 3, 5)

# As their models' configs say.
LARGE = {
    "Llama 3.1 8B": ModelShape(32, 4096, 14336, 32, 8, 128, 128_256),
    "Llama 3.1 70B": ModelShape(80, 8192, 28672, 64, 8, 128, 128_256),
}


def main() -> None:
    """Run the model and print both tables."""
    given = _parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = _measure(Path(folder), given)
    report = (
        measured
        | {"large": _large()}
        | origin(f"python -m benchmarks.shapes --prompts {given.prompts} --tokens {given.tokens}")
    )
    deliver(report, f"{render(report)}\n\n{footer(report)}", given.json)


def render(report: dict[str, Any]) -> str:
    """Return both tables as Markdown."""
    lines = [
        "| p | drafts a round | tokens per round | cost of a round (cost model) "
        "| speedup (cost model) | identical |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['p']} | {row['drafts']} | {row['tokens_per_round']:.2f} "
            f"| {row['round']:.2f} ({row['round_expected']:.2f}) "
            f"| {row['speedup']:.2f} ({row['speedup_expected']:.2f}) "
            f"| {row['identical']} of {row['runs']} |"
        )
    lines += ["", costs(report)]
    acceptances = " | ".join(f"α = {alpha}" for alpha in ACCEPTANCES)
    lines += [
        "",
        f"| cost model | exit layer | cost of a draft | {acceptances} |",
        "| --- | --- | --- |" + " --- |" * len(ACCEPTANCES),
    ]
    for row in report["large"]:
        figures = " | ".join(f"{speedup:.2f}" for speedup in row["speedups"])
        lines.append(
            f"| {row['model']} | {row['exit_layer']} of {row['layers']} "
            f"| {row['draft_cost']:.2f} | {figures} |"
        )
    return "\n".join(lines)


def _measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    model, record = folder / "model", folder / "record.jsonl"
    _write_model(model)
    rng = random.Random(0)
    prompts = [
        ("random", [rng.randrange(3, VOCABULARY) for _ in range(64)]) for _ in range(given.prompts)
    ]

    def start(speculative: dict[str, Any] | None) -> Any:
        return engines.start(
            str(model),
            stages=1,
            cores=given.cores,
            speculative_config=speculative,
            dtype="float32",
            skip_tokenizer_init=True,
        )

    plain = start(None)
    answers = [engines.generate(plain, prompt, given.tokens) for _, prompt in prompts]
    write_record(record, [(answer.prompt, answer.tokens) for answer in answers])
    drafter = {"record": str(record), "acceptance": 1.0}
    ppsd = start(
        {"model": "ppsd", "synthetic_drafter": drafter, "num_speculative_tokens": max(DRAFTS)}
    )
    cases = {(p, k): f"p = {p}, K = {k}" for p in ACCEPTANCES for k in DRAFTS}
    turns = [
        Turn(PLAIN, plain),
        *(Turn(name, ppsd, k, acceptance=p) for (p, k), name in cases.items()),
    ]
    draft_cost, token_cost = modelled_draft_cost(ppsd), measured_token_cost(plain)
    found = summary(interleaved(prompts, turns, given.tokens), draft_cost, token_cost)
    rows = {row["name"]: row for row in found}
    return {
        "rows": [
            rows[name]
            | {"p": p, "drafts": k}
            | {"speedup_expected": tokens_per_round(k, p) / round_cost(k, draft_cost, token_cost)}
            for (p, k), name in cases.items()
        ],
        "draft_cost": draft_cost,
        "token_cost": token_cost,
    }


def _write_model(folder: Path) -> None:
    """Write a random Llama with an exit head; 3 % of its weights are the LM head's."""
    random_llama.write(
        folder,
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    init_head(str(folder), folder / "ppsd", exit_layer=EXIT_LAYER, head_type="lens")


def _large() -> list[dict[str, Any]]:
    """Return the cost model's speedups at the best number of drafts up to five."""
    rows = []
    for name, shape in LARGE.items():
        for share in (4, 2):
            exit_layer = shape.num_layers // share
            cost = shape.draft_cost(assumed_head(shape, exit_layer))
            rows.append(
                {
                    "model": name,
                    "layers": shape.num_layers,
                    "exit_layer": exit_layer,
                    "draft_cost": cost,
                    "speedups": [
                        best_one_device_speedup(max(DRAFTS), cost, alpha) for alpha in ACCEPTANCES
                    ],
                }
            )
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    parser.add_argument("--prompts", type=int, default=3, help="random prompts")
    parser.add_argument("--tokens", type=int, default=64, help="output tokens per prompt")
    return parser


if __name__ == "__main__":
    main()
