"""The search for a layout: exit layer, layers per stage, drafts in flight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.config.layout import split_layers
from vllm_ppsd.costs import ModelShape
from vllm_ppsd.planning.heads import Choice
from vllm_ppsd.planning.model import Expected, plain_pipeline, ppsd
from vllm_ppsd.planning.times import Profile

DEEPEST = 8
"""Drafts in flight beyond the number of stages that are looked at."""


@dataclass(frozen=True)
class Plan:
    """One layout and what it is expected to do.

    Attributes:
        partition: decoder layers per stage; the first is the exit layer.
        drafts: drafts of one request in flight.
        alpha: acceptance rate that is counted on.
        expected: of PPSD.
        speedup: over plain decoding in the layout that is best for that.
        choice: the head, where there was one to choose.
    """

    partition: tuple[int, ...]
    drafts: int
    alpha: float
    expected: Expected
    speedup: float
    choice: Choice | None = None

    @property
    def exit_layer(self) -> int:
        return self.partition[0]

    def command(self, model: str, head: str | None) -> str:
        """Return the command that serves it."""
        partition = ",".join(map(str, self.partition))
        return (
            f"VLLM_PP_LAYER_PARTITION={partition} vllm serve {model} "
            f"--pipeline-parallel-size {len(self.partition)} "
            f"--speculative-model {head or f'HEAD-{self.exit_layer}'} --spec-tokens {self.drafts}"
        )


def best_plain(profile: Profile, stages: int, requests: int = 1) -> Expected:
    """Return plain decoding with the layers split as is best for it."""
    candidates = (_split(profile, exit_layer, stages) for exit_layer in _exits(profile, stages))
    return min(
        (plain_pipeline(profile, partition, requests) for partition in candidates),
        # Of equals the one whose stages are equal: every split does for one request.
        key=lambda expected: (round(expected.ms_per_token, 6), max(expected.verified)),
    )


def plans(
    profile: Profile, stages: int, acceptance: Mapping[int, float], requests: int = 1
) -> list[Plan]:
    """Return the best layout for every exit layer of ``acceptance``, best speedup first.

    Args:
        profile: times on the machine.
        stages: pipeline size.
        acceptance: acceptance rate by exit layer; layers between two known ones are on
            a straight line between them.
        requests: how many decode at once.

    Raises:
        PPSDConfigError: the model cannot be split so, or no exit layer fits.
    """
    if not 2 <= stages <= profile.num_layers:
        raise PPSDConfigError(
            f"{stages} stages do not fit {profile.num_layers} decoder layers: at least 2 stages, "
            "and a layer on each"
        )
    base = best_plain(profile, stages, requests)
    exits = [exit_layer for exit_layer in _exits(profile, stages) if exit_layer in acceptance]
    if not exits:
        raise PPSDConfigError(
            f"none of the exit layers with a known acceptance rate ({_listed(acceptance)}) leaves "
            f"a layer to each of the {stages - 1} stages behind it"
        )
    best = []
    for exit_layer in exits:
        partition = _split(profile, exit_layer, stages)
        alpha = acceptance[exit_layer]
        candidates = [
            (drafts, ppsd(profile, partition, alpha, drafts, requests))
            for drafts in range(1, stages + DEEPEST)
        ]
        # Of equals the one with fewer drafts in flight: less is thrown away.
        drafts, expected = min(
            candidates, key=lambda pair: (round(pair[1].ms_per_token, 6), pair[0])
        )
        speedup = base.ms_per_token / expected.ms_per_token
        best.append(Plan(partition, drafts, alpha, expected, speedup))
    return sorted(best, key=lambda plan: -plan.speedup)


def plans_with_heads(
    profile: Profile,
    stages: int,
    shape: ModelShape,
    heads: Iterable[Choice],
    requests: int = 1,
) -> list[Plan]:
    """Return the best layout and head for every exit layer, best speedup first.

    Args:
        profile: times on the machine, with some head.
        stages: pipeline size.
        shape: sizes of the model.
        heads: to choose from, with their acceptance rates.
        requests: how many decode at once.

    Raises:
        PPSDConfigError: the model cannot be split so, or no exit layer fits.
    """
    best: dict[int, Plan] = {}
    for choice in heads:
        for one in plans(choice.profile(profile, shape), stages, choice.rates, requests):
            before = best.get(one.exit_layer)
            if before is None or one.speedup > before.speedup:
                best[one.exit_layer] = replace(one, choice=choice)
    return sorted(best.values(), key=lambda plan: -plan.speedup)


def between(known: Mapping[int, float]) -> dict[int, float]:
    """Return acceptance rates for every exit layer from the first to the last known one."""
    layers = sorted(known)
    rates = [known[layer] for layer in layers]
    return {
        layer: float(np.interp(layer, layers, rates)) for layer in range(layers[0], layers[-1] + 1)
    }


def _exits(profile: Profile, stages: int) -> Iterator[int]:
    yield from range(1, profile.num_layers - stages + 2)


def _split(profile: Profile, exit_layer: int, stages: int) -> tuple[int, ...]:
    parts = profile.at(1)
    behind_layers = (parts.lm_head + parts.sampler) / parts.layer
    return tuple(split_layers(profile.num_layers, behind_layers, exit_layer, stages))


def _listed(acceptance: Mapping[int, float]) -> str:
    return ", ".join(map(str, sorted(acceptance)))
