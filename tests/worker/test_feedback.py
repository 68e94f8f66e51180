"""States that come back over a channel are laid out as the head reads them."""

from __future__ import annotations

import torch

from vllm_ppsd.protocol import Lane
from vllm_ppsd.worker.channels import Receiver, Sender
from vllm_ppsd.worker.feedback import Feedback, FeedbackSender
from vllm_ppsd.worker.messages import Kind

HIDDEN = 4
PROMPTS = [Lane("a", 0, 0, 3), Lane("b", 0, 0, 2)]
LANES = [Lane("a", 1, 3, drafted=1, behind=0), Lane("b", 1, 2, drafted=1, behind=0)]


def pair() -> tuple[FeedbackSender, Feedback]:
    device = torch.device("cpu")
    receiver = Receiver("127.0.0.1", Kind.FEEDBACK, patience=10)
    sender = FeedbackSender(Sender([receiver.address]), stage=1, device=device)
    return sender, Feedback(receiver, [1], HIDDEN, torch.bfloat16, device)


def test_a_lane_reads_the_position_before_at_its_last_token():
    sender, feedback = pair()
    feedback.enter(PROMPTS)
    sender.send(0, torch.tensor([12, 21]).bfloat16()[:, None].expand(-1, HIDDEN))
    assert not feedback.gather(PROMPTS, [2, 4], 5).any(), "prompts read nothing"
    feedback.enter(LANES)
    states = feedback.gather(LANES, [0, 1], 2)
    assert states.shape == (2, 1, HIDDEN)
    assert states[:, 0, 0].tolist() == [12, 21]
