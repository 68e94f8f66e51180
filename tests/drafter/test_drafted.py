"""Drafts that the device may still be making: what the host knows of them without a wait."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vllm_ppsd.drafter.drafted import DeviceTokens, Drafted
from vllm_ppsd.protocol import ON_DEVICE, Candidate, Draft

CPU = torch.device("cpu")
BURSTS = [
    Candidate((Draft(5, 1, 0.5), Draft(6, 2, 0.25)), replaces=1),
    Candidate(()),
    Candidate((Draft(7, 2, 0.75),)),
]


def waits() -> Any:
    raise AssertionError("looked at a token")


def test_tokens_are_counted_and_cut_without_a_look_at_them():
    tokens = DeviceTokens(torch.arange(5, 11), waits)
    behind = tokens[2:][:-1]
    assert len(tokens) == 6 and bool(tokens)
    assert behind.tensor.tolist() == [7, 8, 9]
    assert not tokens[6:]
    with pytest.raises(AssertionError, match="looked"):
        behind[0]


def test_a_slice_is_on_the_host_what_it_is_on_the_device():
    tokens = DeviceTokens(torch.arange(5, 11), lambda: list(range(5, 11)))
    for part in (tokens[1:], tokens[-2:], tokens[1:5][1:2], tokens[4:2]):
        assert list(part) == part.tensor.tolist()
    assert tokens[-1] == 10
    with pytest.raises(IndexError):
        tokens[2:4][2]


def test_forms_are_known_without_a_wait():
    drafted = Drafted.known(BURSTS, CPU)
    assert drafted.forms[0] == Candidate((Draft(ON_DEVICE, 1), Draft(ON_DEVICE, 2)), replaces=1)
    assert [each.tensor.tolist() for each in drafted.of_each()] == [[5, 6], [], [7]]
    assert drafted.candidates() == BURSTS


def test_what_the_device_made_takes_the_place_of_what_was_not_known():
    forms = Drafted.known(BURSTS, CPU).forms
    made = Drafted.made(forms, torch.tensor([5, 6, 7]), torch.tensor([0.5, 0.25, 0.75]))
    assert made.candidates() == BURSTS
    unsure = Drafted.made(forms, torch.tensor([5, 6, 7])).candidates()
    assert [draft.probability for one in unsure for draft in one.drafts] == [None] * 3
