"""Random pipelines with bursts and siblings."""

from __future__ import annotations

import random
from collections import Counter

from protocol.pipeline import Pipeline
from protocol.request import Settings


def random_tree(seed: int) -> Pipeline:
    """Return a pipeline of anything; run it with ``disturbed=DISTURBED``."""
    rng = random.Random(seed)
    width = rng.randint(1, 8)
    settings = Settings(
        stages=rng.choice([2, 2, 3, 3, 4, 4, 5, 6, 7, 8]),
        depth=rng.randint(0, 8),
        acceptance=rng.choice([0.0, 0.3, 0.6, 0.8, 0.9, 1.0]),
        slots=rng.choice([width, 2 * width, 16]),
        width=width,
        burst=rng.choice([1, 1, 2, 2, 3, 4, 5, 6, 7, 8]),
        reentry=rng.choice([0, 0, 1, 3, 7]),
        vary=rng.random() < 0.8,
        chunked=rng.random() < 0.5,
        cut=rng.choice([0.0, 0.5]) if width == 1 else 0.0,
        hold=rng.choice([0.0, 0.0, 0.3]),
        no_draft=rng.choice([0.0, 0.0, 0.2]),
        preempt=rng.choice([0.0, 0.0, 0.05]),
        reset=rng.choice([0.0, 0.0, 0.05]),
        abort=rng.choice([0.0, 0.0, 0.03]),
        block_size=rng.choice([1, 2, 4, 8]),
    )
    pipeline = Pipeline(settings, rng)
    for number in range(rng.choice([1, 1, 1, 2, 3])):
        pipeline.add_random(f"r{number}", length=14)
    return pipeline


DISTURBED = 80


def run_trees(seeds: range) -> Counter[str]:
    """Run pipelines; return what happened in all of them together.

    Raises:
        AssertionError: an output is wrong, or a rule is broken on the way to it.
    """
    total: Counter[str] = Counter()
    for seed in seeds:
        pipeline = random_tree(seed)
        requests = list(pipeline.requests.values())
        pipeline.run(DISTURBED)
        for request in requests:
            assert request.done or pipeline.settings.abort
        assert pipeline.settings.width > 1 or not pipeline.first.copied
        total.update(pipeline.counts)
        total["copies"] += pipeline.first.copied
        total["pruned"] += pipeline.first.pruned
    return total
