"""The command ``bench``: the table of speeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from vllm_ppsd.bench.methods import Method
from vllm_ppsd.tools.prompts import OWN


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``vllm-ppsd``'s."""
    bench = commands.add_parser(
        "bench", help="compare the speed of PPSD with other ways of decoding, interleaved"
    )
    bench.add_argument("model", help="the target: a folder or a name on the hub")
    bench.add_argument("--head", help="exit head; default: the one that ships for the model")
    bench.add_argument(
        "--prompts", type=Path, default=OWN, help="JSONL file, or a folder with one per prompt set"
    )
    bench.add_argument("--limit", type=int, default=4, help="prompts of each set")
    bench.add_argument("--tokens", type=int, default=96, help="output tokens per prompt")
    bench.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    bench.add_argument("--repeats", type=int, default=2, help="times each prompt is asked")
    bench.add_argument(
        "--methods",
        nargs="+",
        choices=[method.value for method in Method],
        default=[method.value for method in Method],
        help="what takes turns with the plain pipeline; all are in memory at once",
    )
    bench.add_argument("-o", "--output", type=Path, default=Path("bench"), help="folder to write")
    bench.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.bench.run import run
    from vllm_ppsd.tools.report import portable_command

    return run(
        arguments.model,
        arguments.head,
        prompts=arguments.prompts,
        limit=arguments.limit,
        tokens=arguments.tokens,
        temperatures=arguments.temperatures,
        repeats=arguments.repeats,
        methods=[Method(name) for name in arguments.methods],
        output=arguments.output,
        command=portable_command("vllm-ppsd", arguments.model),
    )
