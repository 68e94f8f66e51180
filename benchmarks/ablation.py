"""What moves the acceptance of an exit head: a recipe's first round, one change at a time.

Every variant is fitted to the same cached states for the same share of an epoch and
judged by ``vllm-ppsd eval``'s figures. Text and states must be there (``vllm-ppsd
generate`` and ``cache`` make them, for every exit layer among the variants). A run that
was stopped goes on where it was.

Multi-depth variants read the ends of the later stages of the pipeline that
``--deeper-layers`` describes.
Variants *further on* have layers that start from the target's layers behind ``--start-layer``.

    python -m benchmarks.ablation MODEL --recipe recipe.yaml --prompts FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from vllm_ppsd.tools.report import markdown_table, origin, portable_command, write_report
from vllm_ppsd.training.distill import distill
from vllm_ppsd.training.evaluate import OVERALL, evaluate
from vllm_ppsd.training.recipe import Recipe, read_recipe

CPU = torch.device("cpu")
BASE = "base"
MULTI_DEPTH = "multi-depth"
"""In the name, and a key of the change, of variants that read deeper states."""

FURTHER_ON = "further on"
"""In the name, and a key of the change, of variants whose layers start behind an input map."""

VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "cross-entropy instead of KL": {"optimisation": {"kl_weight": 0.0, "ce_weight": 1.0}},
    "KL and cross-entropy": {"optimisation": {"ce_weight": 0.5}},
    "learning rate 2e-3": {"optimisation": {"learning_rate": 2e-3}},
    "learning rate 5e-4": {"optimisation": {"learning_rate": 5e-4}},
    "no output map": {"output_map": False},
    "two layers": {"layers": 2},
    "three layers": {"layers": 3},
    MULTI_DEPTH: {MULTI_DEPTH: True},
    f"{MULTI_DEPTH}, two layers": {MULTI_DEPTH: True, "layers": 2},
    f"{MULTI_DEPTH}, three layers": {MULTI_DEPTH: True, "layers": 3},
    f"two layers, {FURTHER_ON}": {FURTHER_ON: True, "layers": 2},
    f"three layers, {FURTHER_ON}": {FURTHER_ON: True, "layers": 3},
    f"{MULTI_DEPTH}, two layers, {FURTHER_ON}": {MULTI_DEPTH: True, FURTHER_ON: True, "layers": 2},
    f"{MULTI_DEPTH}, three layers, {FURTHER_ON}": {
        MULTI_DEPTH: True,
        FURTHER_ON: True,
        "layers": 3,
    },
    "draft vocabulary 8,192": {"draft_vocab_size": 8192},
    "draft vocabulary 16,384": {"draft_vocab_size": 16384},
    "a quarter of the steps": {"share": 0.25},
    f"{MULTI_DEPTH}, a quarter of the steps": {MULTI_DEPTH: True, "share": 0.25},
    "half of the steps": {"share": 0.5},
    f"{MULTI_DEPTH}, half of the steps": {MULTI_DEPTH: True, "share": 0.5},
    "twice the steps": {"share": 2.0},
}


def main() -> None:
    """Fit what is missing and print the table."""
    parser = _parser()
    arguments = parser.parse_args()
    names = arguments.only or [n for n in VARIANTS if arguments.start_layer or FURTHER_ON not in n]
    if arguments.start_layer is None and any(FURTHER_ON in name for name in names):
        parser.error(f"variants {FURTHER_ON} need --start-layer")
    base = read_recipe(arguments.recipe).each_round()[0]
    place = {"model": arguments.model, "exit_layer": arguments.exit_layer, "deeper_layers": ()}
    base = base.model_copy(update=place)
    command = portable_command("python -m benchmarks.ablation", arguments.model)
    for name in names:
        output = _head(arguments, name)
        if not output.is_dir():
            recipe = variant(base, VARIANTS[name], arguments)
            distill(recipe, arguments.work, output, CPU, command, cached=True)
    report = {"rows": _judge(arguments)} | origin(command)
    write_report(report, render(report["rows"]), arguments.json)


def variant(base: Recipe, change: dict[str, Any], arguments: argparse.Namespace) -> Recipe:
    """Return the recipe with a change; ``share`` is of the base's epochs.

    Args:
        arguments: whose ``epochs``, ``deeper_layers`` and ``start_layer`` it may ask for.
    """
    values = base.model_dump()
    change = dict(change)
    if change.pop(MULTI_DEPTH, False):
        change["deeper_layers"] = arguments.deeper_layers
    if change.pop(FURTHER_ON, False):
        change["start_layer"] = arguments.start_layer
    optimisation = {"epochs": arguments.epochs * change.pop("share", 1.0)} | change.pop(
        "optimisation", {}
    )
    return Recipe.model_validate(
        values | change | {"optimisation": values["optimisation"] | optimisation}
    )


def render(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table; the last column is the gain over the base."""
    base = next(row[OVERALL] for row in rows if row["name"] == BASE)
    sets = [name for name in rows[0] if name != "name"]
    return markdown_table(
        ["variant", *sets, "gain"],
        [
            [row["name"], *(f"{row[name]:.3f}" for name in sets), f"{row[OVERALL] - base:+.3f}"]
            for row in rows
        ],
    )


def _judge(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    heads = {_head(arguments, name): name for name in VARIANTS}
    names = {path.name: name for path, name in heads.items()}
    made = [path for path in heads if path.is_dir()]
    rows: dict[str, dict[str, Any]] = {}
    judged, _ = evaluate(
        made, arguments.model, arguments.prompts, arguments.eval_work, CPU, max_tokens=256
    )
    for one in judged:
        name = names[one.head]
        rows.setdefault(name, {"name": name})[one.prompts] = one.result.acceptance
    return list(rows.values())


def _head(arguments: argparse.Namespace, name: str) -> Path:
    """Return a variant's folder; its name, which the run takes too, tells the pipelines apart."""
    stages = "-".join(map(str, (arguments.exit_layer, *arguments.deeper_layers)))
    name = name.replace(FURTHER_ON, f"from {arguments.start_layer}")
    return Path(arguments.output) / f"{stages}-{name.replace(' ', '-').replace(',', '')}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="the target")
    parser.add_argument("--recipe", type=Path, required=True, help="what the variants depart from")
    parser.add_argument("--exit-layer", type=int, required=True, help="of all variants")
    parser.add_argument(
        "--deeper-layers", type=int, nargs="+", default=[30], help="ends of the later stages"
    )
    parser.add_argument(
        "--start-layer", type=int, help=f"of the variants {FURTHER_ON}; they need it"
    )
    parser.add_argument("--epochs", type=float, default=0.3, help="of the base")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="fit these alone")
    parser.add_argument("--work", type=Path, default=Path("ppsd-work"), help="of training")
    parser.add_argument("--prompts", nargs="+", required=True, help="as of vllm-ppsd eval")
    parser.add_argument(
        "--eval-work", type=Path, default=Path("ppsd-eval"), help="of vllm-ppsd eval"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("ablation"), help="for the heads")
    parser.add_argument("--json", help="write all numbers to this file")
    return parser


if __name__ == "__main__":
    main()
