"""Draw measured speedup over acceptance rate, beside the ideal curve.

python -m benchmarks.plot results.json picture.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.pipeline import SINGLE
from vllm_ppsd.speedup import ideal_speedup


def main() -> None:
    """Read a report of ``benchmarks.pipeline`` and write a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    rows = {row["name"]: row for row in json.loads(arguments.report.read_text())["rows"]}
    measured = [row for row in rows.values() if row["alpha"] is not None]

    figure, axes = plt.subplots(figsize=(7, 4))
    alphas = [i / 100 for i in range(101)]
    axes.plot(
        alphas, [ideal_speedup(2, a) for a in alphas], color="0.6", label="ideal, n / (α + n(1-α))"
    )
    axes.errorbar(
        [row["alpha"] for row in measured],
        [row["speedup"] for row in measured],
        yerr=[
            [row["speedup"] - row["quartiles"][0] for row in measured],
            [row["quartiles"][1] - row["speedup"] for row in measured],
        ],
        fmt="o",
        capsize=4,
        label="PPSD, measured (median, quartiles)",
    )
    axes.axhline(1, color="C3", linestyle="--", label="plain pipeline, 2 stages")
    axes.axhline(
        rows[SINGLE]["speedup"], color="C2", linestyle=":", label="one process, both cores"
    )
    axes.set_xlabel("acceptance rate α")
    axes.set_ylabel("speedup over plain pipeline decoding")
    axes.set_title("One request, two pipeline stages, SmolLM2-135M, two CPU cores")
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=150)


if __name__ == "__main__":
    main()
