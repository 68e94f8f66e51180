"""What the engines of ``tests.cuda`` have made, and whether it is right."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_ppsd.tools.report import markdown_table


@dataclass(frozen=True)
class Made:
    """What one engine has made.

    Attributes:
        answers: tokens of each request, greedy ones before sampled ones.
        ms_per_token: of each request.
        drafts: verified, of all requests.
        hits: of them.
        syncs: times that the host waited for the device in a call of torch, as torch warns; None
            where there is no such device.
    """

    answers: Sequence[Sequence[int]]
    ms_per_token: Sequence[float]
    drafts: int
    hits: int
    syncs: int | None

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(map(len, self.answers))


@dataclass(frozen=True)
class Expected:
    """How an engine is judged.

    Attributes:
        name: of the engine.
        plain: the engine that decodes the same layers without drafts.
        drafts: whether it drafts at all.
        identical: whether its text must be that engine's, token by token; else rounding may make
            it another.
    """

    name: str
    plain: str
    drafts: bool = True
    identical: bool = False


def problems(made: Mapping[str, Made], expected: Sequence[Expected]) -> Iterator[str]:
    """Say what is wrong.

    Args:
        made: by engine.
        expected: of those that are judged.
    """
    for one in expected:
        ours, plain = made[one.name], made[one.plain]
        same = _same(ours, plain)
        if one.identical and same < len(plain.answers):
            yield f"{one.name}: {len(plain.answers) - same} answers differ from {one.plain}'s"
        elif not same:
            yield f"{one.name}: no answer is {one.plain}'s, which rounding does not explain"
        if one.drafts and not 0 < ours.hits < ours.drafts:
            yield (
                f"{one.name}: {ours.drafts} drafts, {ours.hits} hits; some of both, and some "
                "misses, are expected"
            )


def table(made: Mapping[str, Made], expected: Sequence[Expected]) -> str:
    """Return all that was made as a Markdown table, a line per engine."""
    plain_of = {one.name: one.plain for one in expected}
    lines = []
    for name, one in made.items():
        plain = made[plain_of.get(name, name)]
        speedups = [p / o for p, o in zip(plain.ms_per_token, one.ms_per_token, strict=True)]
        syncs = "" if one.syncs is None else f"{one.syncs / one.tokens:.2f}"
        lines.append(
            [
                name,
                f"{_same(one, plain)} of {len(plain.answers)}" if name in plain_of else "",
                str(one.drafts),
                str(one.hits),
                str(one.drafts - one.hits),
                syncs,
                f"{statistics.median(one.ms_per_token):.2f}",
                f"{statistics.median(speedups):.2f}",
            ]
        )
    headings = ["engine", "same answers as plain", "drafts", "hits", "misses", "syncs a token"]
    return markdown_table([*headings, "ms a token", "times plain"], lines)


def _same(made: Made, plain: Made) -> int:
    return sum(a == b for a, b in zip(made.answers, plain.answers, strict=True))
