"""What the runs of ``vllm-ppsd bench`` say: rows, a Markdown table, a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_ppsd.bench.methods import Method
from vllm_ppsd.bench.runs import Answer, Round
from vllm_ppsd.tools.report import footer, markdown_table, quartiles

ALL = "all"
OTHER_NOISE = "other noise"
"""Coupled drafts need noise that both ends of the pipeline can make; vLLM's is another."""


def rows(
    answers: Mapping[Round, Mapping[Method, Answer]], sets: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row per temperature, prompt set (and all of several) and contender.

    Args:
        answers: of every round, by contender.
        sets: the prompt set of every prompt.
    """
    pairs_of: dict[tuple[float, str, str], list[tuple[Answer, Answer]]] = {}
    for one, given in sorted(answers.items()):
        groups = [sets[one.prompt], ALL] if len(set(sets)) > 1 else [sets[one.prompt]]
        for name, answer in given.items():
            for group in groups:
                pairs = pairs_of.setdefault((one.temperature, group, name), [])
                pairs.append((given[Method.PLAIN], answer))
    return [
        {"temperature": temperature, "set": group, "name": name} | _figures(pairs)
        for (temperature, group, name), pairs in pairs_of.items()
    ]


def _figures(pairs: Sequence[tuple[Answer, Answer]]) -> dict[str, Any]:
    times = [answer.ms_per_token for _, answer in pairs]
    ratios = [plain.ms_per_token / answer.ms_per_token for plain, answer in pairs]
    drafts = sum(answer.drafts for _, answer in pairs)
    return {
        "ms_per_token": statistics.median(times),
        "times_ms": times,
        "acceptance": sum(answer.hits for _, answer in pairs) / drafts if drafts else None,
        "speedup": statistics.median(ratios),
        "quartiles": quartiles(ratios),
        "speedups": ratios,
        "identical": sum(plain.tokens == answer.tokens for plain, answer in pairs),
        "runs": len(pairs),
    }


def render(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown: a table for every temperature."""
    tables = [_table(report, temperature) for temperature in report["temperatures"]]
    setting = (
        f"{report['model']}, head {report['head']} (exit layer {report['partition'][0]}), "
        f"{report['tokens']} tokens an answer, {report['cpu']}"
    )
    return "\n\n".join([*tables, f"{setting}; {footer(report)}"])


def _table(report: Mapping[str, Any], temperature: float) -> str:
    some = [row for row in report["rows"] if row["temperature"] == temperature]
    sets = _sets(some)
    lines = []
    for name in dict.fromkeys(row["name"] for row in some):
        by_set = {row["set"]: row for row in some if row["name"] == name}
        whole = by_set[sets[-1]]
        acceptance = "" if whole["acceptance"] is None else f"{whole['acceptance']:.2f}"
        speedups = [_speedup(by_set[group]) for group in sets]
        time = f"{whole['ms_per_token']:.1f}"
        label = report["labels"][name]
        lines.append([label, time, acceptance, *speedups, _identical(name, whole)])
    headings = ["decoding", "ms per token", "acceptance", *sets, "identical"]
    title = f"Temperature {temperature:g}: speedup over the plain pipeline (median, quartiles)"
    return f"{title}\n\n{markdown_table(headings, lines)}"


def _identical(name: str, row: Mapping[str, Any]) -> str:
    if name == Method.PPSD and row["temperature"] > 0:
        return OTHER_NOISE
    return f"{row['identical']} of {row['runs']}"


def _sets(some: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the prompt sets of rows in their order, all of them together at the end."""
    names = dict.fromkeys(row["set"] for row in some)
    return sorted(names, key=lambda name: name == ALL)


def _speedup(row: Mapping[str, Any]) -> str:
    low, high = row["quartiles"]
    return f"{row['speedup']:.2f} ({low:.2f} to {high:.2f})"


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw the speedups as bars with quartiles, a panel for every temperature."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    temperatures = report["temperatures"]
    figure, all_axes = plt.subplots(
        len(temperatures), 1, figsize=(9, 3 * len(temperatures) + 0.8), sharex=True, squeeze=False
    )
    for axes, temperature in zip(all_axes[:, 0], temperatures, strict=True):
        some = [row for row in report["rows"] if row["temperature"] == temperature]
        sets = _sets(some)
        names = list(dict.fromkeys(row["name"] for row in some if row["name"] != Method.PLAIN))
        width = 0.8 / max(1, len(names))
        for number, name in enumerate(names):
            bars = {row["set"]: row for row in some if row["name"] == name}
            heights = [bars[group]["speedup"] for group in sets]
            low = [bars[g]["speedup"] - bars[g]["quartiles"][0] for g in sets]
            high = [bars[g]["quartiles"][1] - bars[g]["speedup"] for g in sets]
            places = [i + (number - (len(names) - 1) / 2) * width for i in range(len(sets))]
            label = report["labels"][name]
            axes.bar(places, heights, width, yerr=[low, high], capsize=2, label=label)
        axes.axhline(1, color="0.3", linewidth=1)
        axes.set_xticks(range(len(sets)), sets)
        axes.set_ylabel("speedup")
        axes.set_title(
            f"over {report['labels'][Method.PLAIN]} (line), temperature {temperature:g}",
            loc="left",
            fontsize=10,
        )
        axes.grid(axis="y", alpha=0.3)
    handles, labels = all_axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.09 if len(temperatures) > 1 else 0.14, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
