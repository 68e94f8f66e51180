"""Messages and states arrive as they were sent, in order; silence and disorder are errors."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import torch
from vllm.utils.network_utils import test_loopback_bind as can_bind

from vllm_ppsd.protocol import Candidate, Draft, Drafts, Outcome, Verdict
from vllm_ppsd.worker import channels
from vllm_ppsd.worker.channels import ChannelError, Receiver, Sender
from vllm_ppsd.worker.handover import Handover
from vllm_ppsd.worker.messages import Kind


class Pair:
    """Both ends of a channel, as stages hold them."""

    def __init__(self, kind: Kind, patience: float = 10, host: str = "127.0.0.1") -> None:
        receiver = Receiver(host, kind, patience)
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


def test_final_states_go_to_the_first_stage_alone():
    receivers = [Receiver("127.0.0.1", Kind.VERDICTS, 10) for _ in range(2)]
    sender: Sender[Verdict] = Sender([one.address for one in receivers])
    verdict = Verdict(3, {"a": Outcome("a", (7,), 1, 0)}, ("a",))
    sender.send(verdict, to_first=[memoryview(b"state")])
    first, second = (one.receive_with_buffers(3) for one in receivers)
    assert first == (verdict, [b"state"])
    assert second == (verdict, [])


def test_messages_travel_between_ipv6_addresses():
    if not can_bind("::1", socket.AF_INET6):
        pytest.skip("this machine has no IPv6 loopback")
    pair = Pair(Kind.VERDICTS, host="::1")
    assert pair.receiver.address.startswith("tcp://[::1]:")
    pair.sender.send(Verdict(4))
    assert pair.receiver.receive() == Verdict(4)


@pytest.mark.parametrize(
    ("host", "address"), [("10.0.0.1", "tcp://10.0.0.1:0"), ("fd00::7", "tcp://[fd00::7]:0")]
)
def test_a_receiver_listens_at_the_address_of_its_stage(monkeypatch, host: str, address: str):
    class Asked(Exception):
        pass

    def listen(context: object, path: str, *_: object, bind: bool) -> None:
        assert (path, bind) == (address, True)
        raise Asked

    monkeypatch.setattr(channels, "make_zmq_socket", listen)
    with pytest.raises(Asked):
        Receiver(host, Kind.VERDICTS, 1)


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


def test_a_sender_that_is_gone_ends_the_wait_but_loses_nothing():
    pair = Pair(Kind.DRAFTS, patience=60)
    pair.sender.send(Drafts(7))
    assert pair.receiver.receive() == Drafts(7)
    pair.sender.send(Drafts(8))
    threading.Timer(0.2, pair.sender._sockets[0].close, (1000,)).start()
    assert pair.receiver.receive() == Drafts(8)
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(ChannelError, match="no drafts will come"):
            pair.receiver.receive()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("says", [b"", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" * 4])
def test_a_stranger_at_the_port_changes_nothing(says: bytes):
    pair = Pair(Kind.DRAFTS, patience=0.3)
    pair.sender.send(Drafts(7))
    assert pair.receiver.receive() == Drafts(7)
    place = pair.receiver.address.removeprefix("tcp://").split(":")
    with socket.create_connection((place[0], int(place[1]))) as stranger:
        stranger.send(says)
    with pytest.raises(ChannelError, match="no drafts came"):
        pair.receiver.receive()
    pair.sender.send(Drafts(8))
    assert pair.receiver.receive() == Drafts(8)


def test_a_receiver_that_is_gone_leaves_the_others_alone():
    """ZeroMQ's one thread reports a socket's events, and waits if nobody is left to take them."""
    other, pair = Pair(Kind.VERDICTS), Pair(Kind.DRAFTS)
    pair.sender.send(Drafts(7))
    assert pair.receiver.receive() == Drafts(7)
    ends = pair.receiver._socket, pair.receiver._peers.events
    pair.receivers.clear()
    del pair.receiver
    assert all(end.closed for end in ends)
    pair.sender._sockets[0].close(0)
    other.sender.send(Verdict(8))
    assert other.receiver.receive() == Verdict(8)
