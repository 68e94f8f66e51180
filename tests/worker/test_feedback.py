"""States that come back over a wire are laid out as the head reads them."""

from __future__ import annotations

import torch

from vllm_ppsd.protocol import Lane
from vllm_ppsd.worker.feedback import Feedback, FeedbackSender
from vllm_ppsd.worker.wire import Kind, Receiver, Sender

HIDDEN = 4
PROMPTS = [Lane("a", 0, 3, False), Lane("b", 0, 2, False)]
LANES = [Lane("a", 3, 1, True), Lane("b", 2, 1, True)]


def pair(waits: bool = True) -> tuple[FeedbackSender, Feedback]:
    receiver = Receiver("127.0.0.1", Kind.FEEDBACK, patience=10)
    sender = FeedbackSender(Sender(receiver.address), stage=1)
    device = torch.device("cpu")
    return sender, Feedback(receiver, [1], HIDDEN, torch.bfloat16, device, waits)


def test_a_lane_reads_the_position_before_at_its_last_token():
    sender, feedback = pair()
    feedback.enter(PROMPTS)
    sender.send(torch.tensor([12, 21]).bfloat16()[:, None].expand(-1, HIDDEN))
    assert not feedback.gather(PROMPTS, torch.tensor([2, 4]), 5).any(), "prompts read nothing"
    feedback.enter(LANES)
    found = feedback.gather(LANES, torch.tensor([0, 1]), 2)
    assert found.shape == (2, 1, HIDDEN)
    assert found[:, 0, 0].tolist() == [12, 21]


def test_who_does_not_wait_reads_what_is_there():
    _, feedback = pair(waits=False)
    feedback.enter(PROMPTS)
    feedback.enter(LANES)
    assert not feedback.gather(LANES, torch.tensor([0, 1]), 2).any()
