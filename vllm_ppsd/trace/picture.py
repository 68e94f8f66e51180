"""The pipeline as a picture: stages as rows, time to the right, one run above the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_ppsd.trace.spans import BUSY, Share, Trace, What

COLOURS = {"verified": "#2f7fb8", "draft": "#f0a02c", "stale": "#c0392b"}
"""Layers and sampling that count, the exit head, and both where they do not count."""

TOKENS_SHOWN = 14
"""How much of a run is drawn, in tokens of the slowest run's pace."""


def draw(runs: Mapping[str, Trace], path: Path) -> None:
    """Draw a stretch of every run, all to the same scale, and how its whole time was spent."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    length = TOKENS_SHOWN * max(trace.ms_per_token() for trace in runs.values())
    figure, all_axes = plt.subplots(
        len(runs), 1, figsize=(11, 1.9 * len(runs) + 0.5), sharex=True, squeeze=False
    )
    for axes, (name, trace) in zip(all_axes[:, 0], runs.items(), strict=True):
        _draw_run(axes, trace, length)
        shares = "   ".join(
            f"stage {stage}: {_words(share)}" for stage, share in enumerate(trace.shares())
        )
        axes.set_title(
            f"{name}: {trace.ms_per_token():.1f} ms per token      {shares}", loc="left", fontsize=9
        )
    all_axes[-1, 0].set_xlabel("ms")
    figure.legend(
        handles=[Patch(color=colour, label=label) for label, colour in COLOURS.items()]
        + [Patch(facecolor="white", edgecolor="0.6", label="idle")],
        loc="lower right",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_run(axes: Any, trace: Trace, length: float) -> None:
    begin, end = trace.window()
    # From the middle: the first ticks still warm caches up.
    begin = max(begin, (begin + end - length) / 2)
    for span in trace.spans:
        if span.what not in BUSY or span.end < begin or span.start > begin + length:
            continue
        stale = trace.stale_share(span.tick) == 1
        kind = "stale" if stale else "draft" if span.what == What.DRAFT else "verified"
        left = max(span.start, begin) - begin
        right = min(span.end, begin + length) - begin
        axes.barh(span.stage, right - left, left=left, height=0.7, color=COLOURS[kind], linewidth=0)
        if span.what == What.LAYERS and left < span.start - begin + 1:
            axes.text(
                left + 0.5,
                span.stage,
                str(trace.ticks[span.tick][0].position),
                color="white",
                fontsize=7,
                va="center",
                clip_on=True,
            )
    axes.set_yticks(range(trace.stages), [f"stage {stage}" for stage in range(trace.stages)])
    axes.set_ylim(trace.stages - 0.5, -0.5)
    axes.set_xlim(0, length)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _words(share: Share) -> str:
    parts = [f"{100 * share.idle:.0f} % idle"]
    if share.stale >= 0.005:
        parts.append(f"{100 * share.stale:.0f} % stale")
    return ", ".join(parts)
