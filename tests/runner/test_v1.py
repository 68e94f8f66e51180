"""What the port does to vLLM's runner: rewind, discard, park generators, tell what was verified."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from vllm_ppsd.runner.v1 import V1PipelinePort
from vllm_ppsd.runner.v1_single import V1SinglePort


class Mask:
    def __init__(self, rows: int) -> None:
        self.np, self.copied = np.zeros(rows, dtype=bool), 0

    def copy_to_gpu(self, rows: int) -> None:
        self.copied = rows


def runner(output: list[int]) -> Any:
    request = SimpleNamespace(num_prompt_tokens=3, output_token_ids=list(output))
    batch = SimpleNamespace(
        req_ids=["a", "b"],
        req_id_to_index={"a": 0, "b": 1},
        num_reqs=2,
        num_tokens_no_spec=np.array([3 + len(output), 5]),
        num_prompt_tokens=np.array([3, 4]),
        generators={0: "of a", 1: "of b"},
    )
    return SimpleNamespace(
        vllm_config=None,
        device="cpu",
        requests={"a": request, "gone": request},
        input_batch=batch,
        discard_request_mask=Mask(2),
    )


def test_a_rewind_forgets_the_tokens_from_there_on():
    vllm = runner([7, 8, 9])
    V1PipelinePort(vllm).rewind("a", 4)
    assert vllm.requests["a"].output_token_ids == [7]
    assert vllm.input_batch.num_tokens_no_spec[0] == 4


def test_a_rewind_into_the_prompt_or_past_the_end_is_harmless():
    vllm = runner([7])
    V1PipelinePort(vllm).rewind("a", 9)
    assert vllm.requests["a"].output_token_ids == [7]
    V1PipelinePort(vllm).rewind("a", 0)
    assert vllm.requests["a"].output_token_ids == []
    assert vllm.input_batch.num_tokens_no_spec[0] == 3


def test_a_rewind_of_a_request_that_has_no_row_touches_no_row():
    vllm = runner([7, 8])
    V1PipelinePort(vllm).rewind("gone", 3)
    assert vllm.requests["gone"].output_token_ids == []
    assert vllm.input_batch.num_tokens_no_spec[0] == 5


def test_discarded_rows_keep_their_generators():
    vllm = runner([])
    port = V1PipelinePort(vllm)
    port.discard([1])
    assert vllm.discard_request_mask.np.tolist() == [False, True]
    assert vllm.discard_request_mask.copied == 2
    with port.discarded_generators_parked():
        assert vllm.input_batch.generators == {0: "of a"}
    assert vllm.input_batch.generators == {0: "of a", 1: "of b"}


def test_where_nothing_is_discarded_nothing_is_copied():
    vllm = runner([])
    V1PipelinePort(vllm).discard([])
    assert vllm.discard_request_mask.copied == 0


def test_what_a_pass_verified():
    step = SimpleNamespace(scheduled_spec_decode_tokens={"a": [1, 2]})
    (one, two) = V1SinglePort(runner([7, 8])).verified(step, [[7, 8], [9]])
    # Row a samples behind its token and both drafts, and kept the second sample.
    assert (one.sampled_from, two.sampled_from) == (1, 3)
    assert (one.row, one.request_id, one.drafted, one.position, one.is_first) == (
        0,
        "a",
        2,
        4,
        False,
    )
    assert (two.request_id, two.drafted, two.position, two.is_first) == ("b", 0, 4, True)
    assert V1SinglePort(runner([7])).verified(step, [[], []]) == []
