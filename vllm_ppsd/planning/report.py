"""What ``vllm-ppsd profile`` and ``vllm-ppsd plan`` print and draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.costs import ModelShape
from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.exit_head.target_files import check_model
from vllm_ppsd.planning.bursts import assumed_rates, burst_choice, measured_rates
from vllm_ppsd.planning.heads import ASSUMPTION, Choice, choices
from vllm_ppsd.planning.model import Expected, draft_then_verify, tensor_parallel
from vllm_ppsd.planning.plan import Plan, best_plain, between, plans_with_heads
from vllm_ppsd.planning.shape import assumed_head, shape_of
from vllm_ppsd.planning.times import Profile, assumed_profile, read_profile
from vllm_ppsd.protocol.acceptance import Rates

SHOWN = 8
"""Layouts in the table."""

STAGES_DRAWN = (2, 3, 4, 8)

ASSUMED_ACCEPTANCE = {0.25: 0.47, 0.6: 0.75, 0.667: 0.78, 0.9: 0.95}
"""Acceptance rate by the exit's share of the layers, where none was measured: a published
re-measurement on Qwen3.5-4B at a quarter of the depth, the demo model's heads (docs/heads.md)
at 0.6 and 0.667, and a guess towards the end."""


def print_profile(profile: Profile) -> None:
    """Print a profile as a table."""
    table = Table(
        "lanes", "layer", "exit head", "LM head", "sampler", title="ms by lanes of a step"
    )
    for lanes, parts in sorted(profile.by_lanes.items()):
        table.add_row(str(lanes), *(f"{value:.2f}" for _, value in parts))
    console = Console()
    console.print(table)
    console.print(
        f"hand-over {profile.hand_over:.2f} ms, verdict {profile.verdict:.2f} ms, result to next "
        f"step {profile.control:.2f} ms (beside other requests {profile.control_of(2):.2f} ms), "
        f"inputs {profile.prepare:.2f} ms; beside other stages' work a stage takes "
        f"{profile.contention:.2f} times as long"
    )


def plan(
    model: str,
    head: str | None,
    *,
    stages: int,
    profile: Path | None,
    acceptance: Mapping[int, float] | None,
    requests: int,
    delay: float,
    picture: Path | None,
) -> int:
    """Print the ranked layouts, what they rest on, and the command of the best one.

    Raises:
        PPSDConfigError: PPSD does not know the model, the profile is of another one, or the model
            cannot be split so.
    """
    if not check_model(model).transformer_heads and not head:
        raise PPSDConfigError(
            f"{model} takes no transformer heads yet, and a plan counts with one; make a lens head "
            f"(`vllm-ppsd init-head {model} --exit-layer E -o HEAD`) and name it (`--head HEAD`)"
        )
    shape = shape_of(model)
    folder = find(head, model) if head else None
    made = folder.config if folder else assumed_head(shape)
    times = read_profile(profile) if profile else assumed_profile(model, shape, made)
    if times.num_layers != shape.num_layers:
        raise PPSDConfigError(
            f"{profile} is of a model with {times.num_layers} layers, but {model} has "
            f"{shape.num_layers}"
        )
    if times.head is None:
        raise PPSDConfigError(
            f"{profile} does not say which exit head it was measured with; measure it again with "
            "`vllm-ppsd profile`"
        )
    assumptions = list(times.assumed)
    if acceptance is None:
        acceptance = {
            layer: _between_shares(layer / shape.num_layers) for layer in range(1, shape.num_layers)
        }
        assumptions.append(
            "acceptance rates, by depth: "
            + ", ".join(f"{a:.2f} at {s:.0%}" for s, a in ASSUMED_ACCEPTANCE.items())
            + " of the layers"
        )
    rates = between(acceptance)
    linked = times.over_link(delay)
    heads = [Choice(made, rates)] if head else list(choices(made, rates))
    if not head:
        assumptions.append(ASSUMPTION)
    ranked = plans_with_heads(linked, stages, shape, heads, requests)
    console = Console()
    console.print(_table(ranked, linked, requests))
    console.print(_others(ranked[0], linked, shape, requests))
    if folder and made.steps > 1:
        by_step = measured_rates(folder.path)
        if by_step is None:
            by_step = assumed_rates(ranked[0].alpha)
            assumptions.append("acceptance of the head's steps behind the first")
        console.print(_bursts(ranked[0], linked, made.steps, by_step, requests))
    for assumption in assumptions:
        console.print(f"assumed, not measured: {assumption}")
    best = ranked[0]
    if not head and best.choice:
        console.print("\n" + best.choice.training(model, best.exit_layer), soft_wrap=True)
    console.print("\n" + best.command(model, head), soft_wrap=True)
    if picture is not None:
        _draw(linked, shape, heads, requests, picture)
        console.print(str(picture))
    return 0


def _between_shares(share: float) -> float:
    """Acceptance at a share of the depth, on straight lines between the assumed points."""
    shares, rates = [0.0, *ASSUMED_ACCEPTANCE, 1.0], [0.0, *ASSUMED_ACCEPTANCE.values(), 1.0]
    return float(np.interp(share, shares, rates))


def _table(ranked: list[Plan], profile: Profile, requests: int) -> Table:
    made = Table(
        *(
            "exit",
            "layers",
            "head",
            "drafts",
            "α",
            "ms/token",
            "tokens/s",
            "speedup",
            "idle, by stage",
        ),
        title=f"{requests} request(s), speedup over plain decoding in its own best layout",
    )
    for one in ranked[:SHOWN]:
        made.add_row(
            str(one.exit_layer),
            "+".join(map(str, one.partition)),
            one.choice.name if one.choice else "",
            str(one.drafts),
            f"{one.alpha:.2f}",
            *_figures(one.expected),
            f"{one.speedup:.2f}",
            _idle(one.expected),
        )
    base = best_plain(profile, len(ranked[0].partition), requests)
    made.add_row("", "plain", "", "", "", *_figures(base), "1.00", _idle(base))
    return made


def _others(best: Plan, profile: Profile, shape: ModelShape, requests: int) -> str:
    """The ways that PPSD is weighed against, at the best layout's acceptance rate."""
    base = best_plain(profile, len(best.partition), requests).ms_per_token
    parallel = tensor_parallel(profile, len(best.partition), requests).ms_per_token
    assert best.choice is not None
    with_head = best.choice.profile(profile, shape)
    drafted = min(
        draft_then_verify(with_head, best.partition, best.alpha, drafts).ms_per_token
        for drafts in range(1, 9)
    )
    alone = f"; draft, then verify {base / drafted:.2f}" if requests == 1 else ""
    return (
        f"for comparison: tensor parallel over {len(best.partition)} devices {base / parallel:.2f}"
        f"{alone}"
    )


def _bursts(best: Plan, profile: Profile, steps: int, rates: Rates, requests: int) -> str:
    """What serving would choose in the best layout with a head that goes on from its own guess."""
    words, speedup = burst_choice(profile, best.partition, steps, rates, best.drafts, requests)
    return f"with bursts in the first layout: {words}; speedup {speedup:.2f} over plain there"


def _figures(expected: Expected) -> list[str]:
    return [f"{expected.ms_per_token:.1f}", f"{expected.tokens_per_second:.1f}"]


def _idle(expected: Expected) -> str:
    return " ".join(f"{max(0.0, share):.0%}" for share in expected.idle)


def _draw(
    profile: Profile, shape: ModelShape, heads: Sequence[Choice], requests: int, picture: Path
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    for stages in STAGES_DRAWN:
        if stages > profile.num_layers:
            continue
        ranked = plans_with_heads(profile, stages, shape, heads, requests)
        by_exit = sorted(ranked, key=lambda one: one.exit_layer)
        axes.plot(
            [one.exit_layer for one in by_exit],
            [one.speedup for one in by_exit],
            ".-",
            label=f"{stages} stages",
        )
    right: Any = axes.twinx()
    rates: dict[int, float] = {}
    for choice in heads:
        for exit_layer, rate in choice.rates.items():
            rates[exit_layer] = max(rate, rates.get(exit_layer, 0.0))
    right.plot(list(rates), list(rates.values()), ":", color="0.5")
    right.set_ylabel("acceptance rate of the best head (dotted)")
    right.set_ylim(0, 1)
    axes.axhline(1, color="0.7", linewidth=0.8)
    axes.set_xlabel("exit layer")
    axes.set_ylabel("expected speedup over plain pipeline decoding")
    axes.set_title(f"{Path(profile.model).name}, {requests} request(s)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower center")
    figure.tight_layout()
    figure.savefig(picture, dpi=130)
    plt.close(figure)
