"""Rounds on one device, worked out without an engine."""

from __future__ import annotations

import pytest

from benchmarks.draft_length import speedup


def test_right_drafts_at_no_cost_deliver_one_token_more_than_their_number():
    answers = [([True] * 13, [0.9] * 13)]
    assert speedup(answers, 3, 0.0, 0.0) == pytest.approx(4)
    assert speedup(answers, 3, 0.0, 0.5) == pytest.approx(4 / 2.5)


def test_a_miss_ends_what_a_round_delivers_and_its_drafts_are_paid_for():
    answers = [([True, False, True, True, True], [0.9] * 5)]
    # Position 0 is the prompt's; the rounds deliver 1 token, then 3 hits at the text's end.
    assert speedup(answers, 3, 0.0, 0.0) == pytest.approx(5 / 2)
    assert speedup(answers, 3, 0.0, 1.0) == pytest.approx(5 / 8)


def test_nothing_is_drafted_behind_doubt():
    answers = [([True, True, True, True, True], [0.9, 0.9, 0.1, 0.9, 0.9])]
    assert speedup(answers, 4, 0.5, 1.0) == pytest.approx(5 / (3 + 2))
