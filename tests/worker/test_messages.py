"""Rows and states arrive as they were sent, in order; silence is an error."""

from __future__ import annotations

import pytest
import torch

from vllm_ppsd.sampling.proposals import Proposals
from vllm_ppsd.worker.messages import (
    DraftReceiver,
    DraftSender,
    Handover,
    RowReceiver,
    RowSender,
)
from vllm_ppsd.worker.wire import Kind, Receiver, Sender, WireError


class Pair:
    """Both ends of a wire, as a stage's lines hold them."""

    def __init__(self, kind: Kind, patience: float = 10) -> None:
        receiver = Receiver("127.0.0.1", kind, patience)
        self.receivers = {kind: receiver}
        self.senders = {kind: [Sender(receiver.address)]}


def test_rows_arrive_in_order():
    pair = Pair(Kind.VERDICTS)
    sender = RowSender(pair.senders[Kind.VERDICTS])
    receiver = RowReceiver(pair.receivers[Kind.VERDICTS])
    ticks = [[1, -1, 2**40], [], [7]]
    for rows in ticks:
        sender.send(rows)
    assert [receiver.wait() for _ in ticks] == ticks


def test_drafts_arrive_with_what_they_were_drawn_from():
    pair = Pair(Kind.DRAFTS)
    sender = DraftSender(pair.senders[Kind.DRAFTS])
    receiver = DraftReceiver(pair.receivers[Kind.DRAFTS])
    told = Proposals(
        [0, 2], torch.tensor([[5, 49_151], [0, 7]]), torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    )
    sender.send([5, -1, 0], told)
    sender.send([9], None)
    drafts, heard = receiver.wait()
    assert drafts == [5, -1, 0]
    assert heard is not None
    assert heard.rows == told.rows
    assert torch.equal(heard.token_ids, told.token_ids)
    assert torch.equal(heard.chances, told.chances)
    assert receiver.wait() == ([9], None)


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


def test_silence_is_an_error_that_says_from_whom():
    pair = Pair(Kind.VERDICTS, patience=0.05)
    with pytest.raises(WireError, match="no verdicts came from the other stage"):
        RowReceiver(pair.receivers[Kind.VERDICTS]).wait()
