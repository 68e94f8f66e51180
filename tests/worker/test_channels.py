"""Messages and states arrive as they were sent, in order; silence and disorder are errors."""

from __future__ import annotations

import pytest
import torch

from vllm_ppsd.protocol import Candidate, Draft, Drafts, Outcome, Verdict
from vllm_ppsd.worker import channels
from vllm_ppsd.worker.channels import ChannelError, Receiver, Sender
from vllm_ppsd.worker.handover import Handover
from vllm_ppsd.worker.messages import Kind


class Pair:
    """Both ends of a channel, as stages hold them."""

    def __init__(self, kind: Kind, patience: float = 10) -> None:
        receiver = Receiver("127.0.0.1", kind, patience)
        self.receivers = {kind: receiver}
        self.senders = {kind: Sender([receiver.address])}
        self.receiver, self.sender = receiver, self.senders[kind]


def test_verdicts_arrive_in_order():
    pair = Pair(Kind.VERDICTS)
    sent = [
        Verdict(4, {"a": Outcome("a", (2**40, 7), 2, 1), "b": Outcome("b", (1,), 1, 1, 0)}),
        Verdict(5),
    ]
    for verdict in sent:
        pair.sender.send(verdict)
    assert [pair.receiver.receive() for _ in sent] == sent


def test_drafts_arrive_as_they_were_made():
    pair = Pair(Kind.DRAFTS)
    drafts = Drafts(3, {"a": (Candidate((Draft(5), Draft(6, step=2, probability=0.25)), 1),)})
    pair.sender.send(drafts)
    assert pair.receiver.receive(tick=3) == drafts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_states_arrive_whatever_becomes_of_the_tensors(dtype: torch.dtype):
    handover = Handover(Pair(Kind.STATES))  # type: ignore[arg-type]
    states = torch.randn(5, 8).to(dtype)
    sent = {"hidden_states": states[:, ::2], "residual": states.clone()}
    wanted = {name: tensor.clone() for name, tensor in sent.items()}
    tensors, handles, (fill,) = handover.receive()
    assert handover.send(sent) == handles == []
    states.zero_()
    assert tensors == {}
    fill()
    assert list(tensors) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(tensors[name], tensor)
        tensors[name].zero_()  # vLLM's fused norms work in place


def test_states_of_another_tick_are_refused():
    handover = Handover(Pair(Kind.STATES))  # type: ignore[arg-type]
    handover.tick = 4
    _, _, (fill,) = handover.receive()
    handover.tick = 3
    handover.send({"hidden_states": torch.zeros(1)})
    with pytest.raises(ChannelError, match="states of tick 3 came where those of tick 4 were due"):
        fill()


def test_a_message_out_of_order_is_an_error_that_says_so():
    pair = Pair(Kind.DRAFTS)
    pair.sender.send(Drafts(7))
    with pytest.raises(ChannelError, match="drafts of tick 7 came where those of tick 6 were due"):
        pair.receiver.receive(tick=6)


def test_another_version_of_the_package_is_an_error_that_says_so(monkeypatch):
    pair = Pair(Kind.DRAFTS)
    with monkeypatch.context() as patch:
        patch.setattr(channels, "VERSION", b"old!")
        pair.sender.send(Drafts(7))
    with pytest.raises(ChannelError, match="same version of vllm-ppsd on all nodes"):
        pair.receiver.receive()


def test_silence_is_an_error_that_says_from_whom():
    pair = Pair(Kind.VERDICTS, patience=0.05)
    with pytest.raises(ChannelError, match="no verdicts came from the other stage"):
        pair.receiver.receive()
