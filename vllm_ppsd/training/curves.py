"""Loss and acceptance over the steps of a run, as a picture."""

from __future__ import annotations

import json
from pathlib import Path


def draw_curves(log: Path, picture: Path) -> None:
    """Draw the log of a run.

    Args:
        log: the run's ``log.jsonl``.
        picture: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    validated = [line for line in lines if "validation" in line]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot([x["step"] for x in trained], [x["loss"] for x in trained], label="training")
    left.plot(
        [x["step"] for x in validated],
        [x["validation"]["loss"] for x in validated],
        "o-",
        label="held out",
    )
    left.set_xlabel("step")
    left.set_ylabel("distillation loss")
    left.legend()
    right.plot(
        [x["step"] for x in validated], [x["validation"]["acceptance"] for x in validated], "o-"
    )
    right.set_xlabel("step")
    right.set_ylabel("acceptance rate, held out")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
