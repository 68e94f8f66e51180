"""Recorded drafts are right as often as it says, and the same in every run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from support.fake_runner import FakeDrafter

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.config.ppsd import SyntheticDrafter
from vllm_ppsd.drafter.drafted import Drafted
from vllm_ppsd.drafter.interface import ExitStates, Wanted
from vllm_ppsd.drafter.recorded import RecordedDrafter, read_record, write_record
from vllm_ppsd.protocol import Candidate, Draft

PROMPT, OUTPUT = [1, 2, 3], list(range(100, 1100))
PROMPTS = {"a": PROMPT, "b": [9]}
CPU = torch.device("cpu")
NOTHING = torch.empty(0)
STATES = ExitStates(NOTHING, NOTHING, None)


def make(path: Path, acceptance: float, seed: int = 0) -> RecordedDrafter:
    config = SyntheticDrafter(record=str(path), acceptance=acceptance, seed=seed)
    return RecordedDrafter(read_record(path), config, 2000, PROMPTS.__getitem__, CPU)


def drafts(path: Path, acceptance: float, seed: int = 0) -> list[int]:
    wanted = [Wanted(0, "a", len(PROMPT) + i) for i in range(len(OUTPUT))]
    return list(make(path, acceptance, seed).draft(STATES, NOTHING, wanted).tokens)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    write_record(tmp_path / "record.jsonl", [(PROMPT, OUTPUT)])
    return tmp_path / "record.jsonl"


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.7, 1.0])
def test_it_is_right_as_often_as_it_says(record: Path, acceptance: float):
    hits = sum(d == o for d, o in zip(drafts(record, acceptance), OUTPUT, strict=True))
    assert hits / len(OUTPUT) == pytest.approx(acceptance, abs=0.05)


def test_it_repeats_itself_by_seed(record: Path):
    assert drafts(record, 0.5) == drafts(record, 0.5)
    assert drafts(record, 0.5) != drafts(record, 0.5, seed=1)


def test_a_burst_that_is_drafted_again_mostly_stays_where_it_was_right(record: Path):
    drafter = make(record, 0.7)
    kept, mended = [], []
    for place in range(len(PROMPT), len(PROMPT) + len(OUTPUT) - 2):
        (burst,) = drafter.draft(STATES, NOTHING, [Wanted(0, "a", place)]).candidates()
        embedded = burst.drafts[0].token
        wanted = [Wanted(0, "a", place + 1, embedded=(embedded,))]
        (again,) = drafter.draft(STATES, NOTHING, wanted).candidates()
        right = OUTPUT[place - len(PROMPT)]
        if embedded == right:
            kept.append(not again.replaces)
        else:
            assert again.replaces == 1
            mended.append(again.drafts[0].token == right)
    assert sum(kept) / len(kept) == pytest.approx(0.93, abs=0.05)
    assert sum(mended) / len(mended) == pytest.approx(0.42, abs=0.1)


def test_beyond_the_record_it_drafts_a_wrong_token(record: Path):
    wanted = [Wanted(0, "a", len(PROMPT) + len(OUTPUT)), Wanted(1, "b", 5)]
    drafted = make(record, 1.0).draft(STATES, NOTHING, wanted)
    assert drafted.candidates() == [Candidate((Draft(0),))] * 2


def test_a_burst_goes_on_in_the_record(record: Path):
    wanted = [Wanted(0, "a", len(PROMPT), length=3)]
    (made,) = make(record, 1.0).draft(STATES, NOTHING, wanted).candidates()
    assert made.drafts == tuple(Draft(token, step=1 + i) for i, token in enumerate(OUTPUT[:3]))


def test_a_broken_record_is_named(tmp_path: Path):
    path = tmp_path / "record.jsonl"
    whole = '{"prompt_token_ids": [1], "output_token_ids": [2]}\n'
    for damaged in ('{"prompt_token_ids": [1]}\n', whole.replace("2", '"t2"'), "[]\n", "{"):
        path.write_text(whole + damaged)
        with pytest.raises(PPSDConfigError, match="line 2: no "):
            read_record(path)


def test_the_drafter_in_whose_place_it_stands_runs_all_the_same(record: Path):
    class Inner(FakeDrafter):
        def draft(self, states, last, wanted):
            made = super().draft(states, last, wanted).candidates()
            sure = [Candidate((replace(one.drafts[0], probability=0.5),)) for one in made]
            return Drafted.known(sure, CPU)

    inner = Inner()
    config = SyntheticDrafter(record=str(record), acceptance=1.0)
    outer = RecordedDrafter(read_record(record), config, 2000, PROMPTS.__getitem__, CPU, inner)
    wanted = [Wanted(0, "a", len(PROMPT))]
    (made,) = outer.draft(STATES, NOTHING, wanted).candidates()
    assert made == Candidate((Draft(OUTPUT[0], probability=0.5),))
    assert inner.wanted == [wanted]
