"""The commands ``profile``, ``plan`` and ``trace``: what a pipeline does, and could do."""

from __future__ import annotations

import argparse
from pathlib import Path

from vllm_ppsd.config.errors import PPSDConfigError

DEFAULT_LANES = (1, 2, 4, 8, 16, 32, 64)


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to ``vllm-ppsd``'s."""
    profile = commands.add_parser(
        "profile", help="measure what layers, heads and hand-overs take on this machine"
    )
    profile.add_argument("model", help="the target: a folder or a name on the hub")
    profile.add_argument("--head", help="exit head; default: the one that ships for the model")
    profile.add_argument(
        "--lanes", type=int, nargs="+", default=DEFAULT_LANES, help="requests in a step"
    )
    profile.add_argument("-o", "--output", type=Path, default=Path("profile.json"))
    profile.set_defaults(run=_profile)

    plan = commands.add_parser(
        "plan", help="pick exit layer, layers per stage and drafts in flight for a pipeline"
    )
    plan.add_argument("model", help="the target: a folder or a name on the hub")
    plan.add_argument("--stages", type=int, required=True, help="pipeline size")
    plan.add_argument("--head", help="exit head to count with; default: one decoder layer")
    plan.add_argument("--profile", type=Path, help="of `vllm-ppsd profile`; default: by weights")
    plan.add_argument(
        "--acceptance", type=Path, help="JSON object of acceptance rates by exit layer"
    )
    plan.add_argument("--requests", type=int, default=1, help="that decode at once")
    plan.add_argument("--delay", type=float, default=0.0, help="of the link, ms each way")
    plan.add_argument("--plot", type=Path, help="draw the speedup over exit layer and stages (PNG)")
    plan.set_defaults(run=_plan)

    trace = commands.add_parser(
        "trace", help="record what every stage does when, and draw it, for plain decoding and PPSD"
    )
    trace.add_argument("model", help="the target: a folder or a name on the hub")
    trace.add_argument("--head", help="exit head; default: the one that ships for the model")
    trace.add_argument(
        "--prompt", default="Why is the sky blue? Answer in three sentences.", help="what is asked"
    )
    trace.add_argument("--tokens", type=int, default=64, help="output tokens")
    trace.add_argument("-o", "--output", type=Path, default=Path("trace"), help="folder to write")
    trace.set_defaults(run=_trace)


def _profile(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.files import write_whole
    from vllm_ppsd.planning.profile import measure
    from vllm_ppsd.planning.report import print_profile

    profile = measure(arguments.model, arguments.head, arguments.lanes)
    text = profile.model_dump_json(indent=2) + "\n"
    write_whole(arguments.output, lambda path: path.write_text(text))
    print_profile(profile)
    print(arguments.output)
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.planning.report import plan

    return plan(
        arguments.model,
        arguments.head,
        stages=arguments.stages,
        profile=arguments.profile,
        acceptance=_acceptance(arguments.acceptance),
        requests=arguments.requests,
        delay=arguments.delay,
        picture=arguments.plot,
    )


def _acceptance(path: Path | None) -> dict[int, float] | None:
    """Read acceptance rates: ``{"18": 0.75}``."""
    if path is None:
        return None
    from vllm_ppsd.files import read_json_object

    values = read_json_object(path)
    try:
        rates = {int(layer): float(rate) for layer, rate in values.items()}
    except (ValueError, TypeError):
        raise PPSDConfigError(
            f'{path} holds no acceptance rates: expected {{"EXIT_LAYER": RATE, …}}'
        ) from None
    wrong = {layer: rate for layer, rate in rates.items() if not 0 <= rate <= 1}
    if wrong or not rates:
        raise PPSDConfigError(f"{path}: acceptance rates lie between 0 and 1, not {wrong or rates}")
    return rates


def _trace(arguments: argparse.Namespace) -> int:
    from vllm_ppsd.planning.trace import run

    return run(
        arguments.model, arguments.head, arguments.prompt, arguments.tokens, arguments.output
    )
