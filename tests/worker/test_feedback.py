"""States that come back over a wire are laid out as the head reads them."""

from __future__ import annotations

import torch

from vllm_ppsd.protocol import Lane
from vllm_ppsd.worker.feedback import Feedback, FeedbackSender
from vllm_ppsd.worker.wire import Kind, Receiver, Sender

HIDDEN = 4


def pair(waits: bool = True) -> tuple[FeedbackSender, Feedback]:
    receiver = Receiver("127.0.0.1", Kind.FEEDBACK, patience=10)
    sender = FeedbackSender(Sender(receiver.address), stage=1)
    device = torch.device("cpu")
    return sender, Feedback(receiver, [1], HIDDEN, torch.bfloat16, device, waits)


def states(*names: int) -> torch.Tensor:
    return torch.tensor(names).bfloat16()[:, None].expand(-1, HIDDEN)


def test_a_lane_reads_the_position_before_at_its_last_token():
    sender, feedback = pair()
    first = [Lane("a", 0, 3, False), Lane("b", 0, 2, False)]
    feedback.enter(first)
    sender.send(states(12, 21))
    assert not feedback.gather([], torch.tensor([]), 5).any(), "prompts beside others"
    second = [Lane("a", 3, 1, True), Lane("b", 2, 1, True)]
    feedback.enter(second)
    found = feedback.gather(second, torch.tensor([0, 1]), 2)
    assert found[:, 0, 0].tolist() == [12, 21]


def test_a_lone_prompt_reads_its_own_states_one_position_behind():
    sender, feedback = pair()
    prompt = Lane("a", 0, 4, False)
    feedback.enter([prompt])
    sender.send(states(10, 11, 12, 13))
    found = feedback.gather([prompt], torch.tensor([3]), 4)
    assert found[:, 0, 0].tolist() == [0, 10, 11, 12]
    assert found.shape == (4, 1, HIDDEN)


def test_who_does_not_wait_reads_what_is_there():
    _, feedback = pair(waits=False)
    prompt = Lane("a", 0, 2, False)
    feedback.enter([prompt])
    assert not feedback.gather([prompt], torch.tensor([1]), 2).any()
