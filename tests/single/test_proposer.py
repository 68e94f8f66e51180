"""How far drafting goes: bound, doubt, the model's length, prompts that are not finished."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from vllm_ppsd.single.proposer import EarlyExitProposer


class Counting(EarlyExitProposer):
    """Drafts the token after the newest one; its probability is 0.9 for even tokens."""

    def __init__(self, lengths: list[int], drafts: int, threshold: float, prompt: int = 1) -> None:
        super().__init__(vllm_config=None)  # type: ignore[arg-type]
        names = [f"r{row}" for row in range(len(lengths))]
        batch = SimpleNamespace(
            num_tokens_no_spec=np.array(lengths),
            num_prompt_tokens=np.full(len(lengths), prompt),
            req_ids=names,
        )
        runner = SimpleNamespace(input_batch=batch, max_model_len=100)
        config: Any = SimpleNamespace(max_drafts=drafts, draft_threshold=threshold)
        self.adopt(runner, config)
        self.batches: list[tuple[list[int], list[int]]] = []

    def _draft(
        self, rows: list[int], tokens: list[int], positions: list[int], depth: int
    ) -> tuple[list[int], list[float]]:
        self.batches.append((list(rows), list(positions)))
        drafts = [token + 1 for token in tokens]
        return drafts, [0.9 if draft % 2 == 0 else 0.1 for draft in drafts]


def test_every_request_that_sampled_is_drafted_for_at_its_own_position():
    proposer = Counting([10, 20, 30], drafts=2, threshold=0.0)
    assert proposer.propose([[4, 5], [], [7]], {}) == [[6, 7], [], [8, 9]]
    assert proposer.batches == [([0, 2], [9, 29]), ([0, 2], [10, 30])]


def test_the_first_token_of_an_output_does_not_wait_for_drafts():
    proposer = Counting([10, 11, 12], drafts=1, threshold=0.0, prompt=10)
    assert proposer.propose([[], [5], [7]], {}) == [[], [], [8]]
    assert proposer.batches == [([2], [11])]


def test_nothing_is_drafted_behind_a_doubtful_draft():
    proposer = Counting([10, 20], drafts=3, threshold=0.5)
    # 5 is followed by 6 (sure) and 7 (doubtful); 6 by 7 (doubtful).
    assert proposer.propose([[5], [6]], {}) == [[6, 7], [7]]
    assert [rows for rows, _ in proposer.batches] == [[0, 1], [0]]


def test_no_draft_lies_past_the_models_length():
    proposer = Counting([98, 99, 100], drafts=4, threshold=0.0)
    assert proposer.propose([[1], [1], [1]], {}) == [[2, 3], [2], []]


def test_fewer_drafts_can_be_asked_for():
    proposer = Counting([10], drafts=4, threshold=0.0)
    proposer.drafts = 1
    assert proposer.propose([[1]], {}) == [[2]]


def test_a_request_whose_drafts_fail_drafts_no_more_until_it_is_tried_anew():
    proposer = Counting([10, 20], drafts=2, threshold=0.5)
    for _ in range(40):
        proposer.propose([[5], [5, 6, 7]], {"r0": [1], "r1": [6, 7]})
    assert proposer.propose([[5], [5]], {}) == [[], [6, 7]]
    for _ in range(200):
        found = proposer.propose([[5], [5]], {})
    assert found == [[6], [6, 7]]


def test_at_threshold_0_everything_is_drafted_whatever_was_missed():
    proposer = Counting([10], drafts=3, threshold=0.0)
    for _ in range(100):
        assert proposer.propose([[5]], {"r0": [1, 2, 3]}) == [[6, 7, 8]]


def test_the_rate_of_a_request_that_left_is_forgotten():
    proposer = Counting([10], drafts=1, threshold=0.5)
    for _ in range(60):
        proposer.propose([[5]], {"r0": [1]})
    proposer.forget(["r0"])
    assert len(proposer._acceptance) == 0
