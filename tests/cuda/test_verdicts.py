"""What the run on a GPU takes for right and wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .verdicts import Expected, Made, problems, table

PLAIN = Made([[1, 2, 3], [4, 5, 6]], [4.0, 6.0], drafts=0, hits=0, syncs=None)
OURS = Made([[1, 2, 3], [4, 5, 6]], [2.0, 2.0], drafts=10, hits=6, syncs=3)


def said(ours: Made, *, identical: bool) -> list[str]:
    return list(
        problems({"plain": PLAIN, "ours": ours}, [Expected("ours", "plain", True, identical)])
    )


def test_the_same_text_with_hits_and_misses_is_right():
    assert said(OURS, identical=True) == []


@pytest.mark.parametrize(
    ("ours", "identical", "problem"),
    [
        (replace(OURS, answers=[[1, 2, 3], [4, 5, 7]]), True, "1 answers differ from plain's"),
        (replace(OURS, answers=[[1, 2, 9], [4, 5, 7]]), False, "no answer is plain's"),
        (replace(OURS, drafts=0, hits=0), True, "0 drafts, 0 hits"),
        (replace(OURS, hits=10), True, "10 drafts, 10 hits"),
    ],
)
def test_what_is_wrong_is_said(ours: Made, identical: bool, problem: str):
    (seen,) = said(ours, identical=identical)
    assert problem in seen


def test_rounding_may_change_some_answers_in_default_mode():
    assert said(replace(OURS, answers=[[1, 2, 3], [4, 5, 7]]), identical=False) == []


def test_the_table_has_a_line_per_engine():
    lines = table({"plain": PLAIN, "ours": OURS}, [Expected("ours", "plain")]).splitlines()
    assert lines[2] == "| plain |  | 0 | 0 | 0 |  | 5.00 | 1.00 |"
    assert lines[3] == "| ours | 2 of 2 | 10 | 6 | 4 | 0.50 | 2.00 | 2.50 |"
