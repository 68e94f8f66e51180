"""The command line flag ``--speculative-model``."""

from __future__ import annotations

import argparse
from typing import Any

from vllm_ppsd.hooks.request import METHOD


class _SpeculativeModel(argparse.Action):
    """Store ``ppsd`` or an exit-head folder in the fields that vLLM keeps."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        namespace.spec_method = METHOD
        namespace.spec_model = str(values)


def add_speculative_model_flag(parser: Any) -> None:
    """Add ``--speculative-model`` to a parser that has vLLM's engine arguments.

    ``EngineArgs.from_cli_args`` keeps dataclass fields only, so the flag acts on
    ``spec_method`` and ``spec_model``; ``--spec-method`` learns the method's name.
    """
    options = parser._option_string_actions
    if "--speculative-model" in options:
        return
    method = options.get("--spec-method")
    if method is not None and method.choices is not None:
        method.choices = [*method.choices, METHOD]
    parser.add_argument(
        "--speculative-model",
        action=_SpeculativeModel,
        dest="speculative_model",
        default=argparse.SUPPRESS,
        metavar="{ppsd,EXIT_HEAD_FOLDER}",
        help="Decode with PPSD (Pipeline-Parallel Self-Speculative Decoding): "
        "`ppsd` looks for the exit head of the model, a path names it.",
    )
