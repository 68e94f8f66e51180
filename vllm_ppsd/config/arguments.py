"""Whether engine arguments ask for PPSD, and with which options; the flag that is PPSD's own."""

from __future__ import annotations

import argparse
from typing import Any

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.hooks.marks import METHOD

_ALIASES = (
    ("--spec-method", "method", "spec_method"),
    ("--spec-model", "model", "spec_model"),
    ("--spec-tokens", "num_speculative_tokens", "spec_tokens"),
)


def requested(engine_args: Any) -> bool:
    """Whether ``EngineArgs`` name the method ``ppsd`` in any of vLLM's spellings."""
    given = engine_args.speculative_config or {}
    # A vLLM that PPSD does not fit may have no such fields.
    method = getattr(engine_args, "spec_method", None) or given.get("method")
    if method is not None:
        return bool(method == METHOD)
    return METHOD in (getattr(engine_args, "spec_model", None), given.get("model"))


def options(engine_args: Any) -> dict[str, Any]:
    """Collect the options of every spelling into one dictionary.

    Raises:
        PPSDConfigError: an option is given twice.
    """
    collected = {
        key.replace("-", "_"): value
        for key, value in (engine_args.speculative_config or {}).items()
    }
    for flag, key, attribute in _ALIASES:
        value = getattr(engine_args, attribute)
        if value is None:
            continue
        if key in collected:
            raise PPSDConfigError(
                f"{flag} and --speculative-config['{key}'] say the same thing; give one of them"
            )
        collected[key] = value
    collected["method"] = METHOD
    return collected


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
