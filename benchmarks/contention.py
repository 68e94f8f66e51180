"""How much two cores slow each other down: the ceiling of any pipeline on them.

Each core streams its own 130 MB of bfloat16 weights through products with one
vector, as a pipeline stage's layers do, first alone and then both together. What
they lose together, PPSD loses against the ideal, since plain decoding keeps one
stage busy at a time.

    python -m benchmarks.contention [--cores 0,1]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time

import torch

SHAPE, COUNT = (1536, 576), 75
"""Matrices of the demo model's MLP, as many as half the model weighs."""


def main() -> None:
    """Print the time of one pass alone and together."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cores", default="0,1", help="the two cores")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cores = [int(core) for core in arguments.cores.split(",")]
    print("| cores | alone, ms | together, ms | slower by |\n| --- | --- | --- | --- |")
    with multiprocessing.get_context("spawn").Pool(len(cores)) as pool:
        for _ in range(arguments.repeats):
            alone = [pool.apply(_pass_ms, (core, arguments.seconds)) for core in cores]
            together = pool.starmap(_pass_ms, [(core, arguments.seconds) for core in cores], 1)
            before, after = statistics.mean(alone), statistics.mean(together)
            print(f"| {arguments.cores} | {before:.2f} | {after:.2f} | {after / before - 1:.1%} |")


def _pass_ms(core: int, seconds: float) -> float:
    """Return the median time of one pass over the weights on ``core``."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    weights = [torch.randn(*SHAPE).bfloat16() for _ in range(COUNT)]
    vector = torch.randn(1, SHAPE[1]).bfloat16()
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        for weight in weights:
            torch.nn.functional.linear(vector, weight)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    main()
