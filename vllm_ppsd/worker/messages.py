"""What stages tell each other, past the scheduler: states forward, drafts and verdicts.

States that the head reads besides its own go back to the first stage (``feedback``).
Drafts go from the first to the last stage, verdicts back to all before it, a message a tick:
one int64 per row, and of probabilistic drafts what they were drawn from. A verdict is there as
soon as the token is sampled; a draft may follow the hidden states that it was made from, which
then wait for nothing. Where vLLM's own hand-over of states between neighbours is slow
(``Handover``), they take the same way.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from vllm.distributed.parallel_state import get_pp_group

from vllm_ppsd.sampling.proposals import Proposals
from vllm_ppsd.worker.feedback import FeedbackSender
from vllm_ppsd.worker.wire import Kind, Receiver, Sender, lay


class Lines:
    """All wires of a stage; making them is a collective call of the pipeline's stages.

    Args:
        host: this stage's address, at which the others reach it.
        patience: seconds to wait for a message.
        states: whether hidden states go over wires, too.
        feedback: the stages that send their states back to the first.
    """

    def __init__(
        self, host: str, patience: float, states: bool, feedback: Sequence[int] = ()
    ) -> None:
        group = get_pp_group()
        first, last = group.is_first_rank, group.is_last_rank
        receives = {
            Kind.STATES: states and not first,
            Kind.DRAFTS: last,
            Kind.VERDICTS: not last,
            Kind.FEEDBACK: first and bool(feedback),
        }
        behind = group.world_size - 1
        targets = {
            Kind.STATES: [group.rank_in_group + 1] if states and not last else [],
            Kind.DRAFTS: [behind] if first else [],
            Kind.VERDICTS: range(behind) if last else [],
            Kind.FEEDBACK: [0] if group.rank_in_group in feedback else [],
        }
        self.receivers = {
            kind: Receiver(host, kind, patience) for kind, mine in receives.items() if mine
        }
        self.senders = lay(self.receivers, targets, group.cpu_group)

    def feedback_sender(self) -> FeedbackSender | None:
        """Return what sends this stage's states back; None where nobody reads them."""
        senders = self.senders[Kind.FEEDBACK]
        return FeedbackSender(senders[0], get_pp_group().rank_in_group) if senders else None


class RowSender:
    """Sends int64 rows, to every stage that wants them."""

    def __init__(self, senders: Sequence[Sender]) -> None:
        self._senders = senders

    def send(self, rows: Sequence[int]) -> None:
        """Send one tick's message, in row order."""
        for sender in self._senders:
            sender.send([array("q", rows).tobytes()])


class RowReceiver:
    """Receives them."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def ready(self) -> bool:
        """Whether the next tick's message is there."""
        return self._receiver.ready()

    def wait(self) -> list[int]:
        """Wait for the next tick's message."""
        (rows,) = self._receiver.receive()
        return array("q", rows).tolist()


class DraftSender:
    """Sends drafts to the last stage."""

    def __init__(self, senders: Sequence[Sender]) -> None:
        self._senders = senders

    def send(self, drafts: Sequence[int], proposals: Proposals | None) -> None:
        """Send one tick's drafts, in row order, and what sampled rows were drawn from."""
        parts: list[bytes | memoryview] = [array("q", drafts).tobytes()]
        if proposals is not None:
            parts += [
                array("q", proposals.rows).tobytes(),
                memoryview(_bytes_of(proposals.token_ids.int().cpu()).numpy()),
                memoryview(_bytes_of(proposals.chances.cpu()).numpy()),
            ]
        for sender in self._senders:
            sender.send(parts)


class DraftReceiver:
    """Receives them."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def wait(self) -> tuple[list[int], Proposals | None]:
        """Wait for the next tick's message."""
        drafts, *drawn = self._receiver.receive()
        proposals = None
        if drawn:
            rows = array("q", drawn[0]).tolist()
            token_ids, chances = (
                torch.frombuffer(bytearray(data), dtype=dtype).view(len(rows), -1)
                for data, dtype in zip(drawn[1:], (torch.int32, torch.float32), strict=True)
            )
            proposals = Proposals(rows, token_ids.long(), chances)
        return array("q", drafts).tolist(), proposals


class Handover:
    """Takes the place of a pipeline group's ``isend_tensor_dict`` and ``irecv_tensor_dict``.

    Args:
        lines: this stage's.
    """

    def __init__(self, lines: Lines) -> None:
        self._senders = lines.senders[Kind.STATES]
        self._receiver = lines.receivers.get(Kind.STATES)

    def send(self, tensors: Mapping[str, torch.Tensor]) -> list[Any]:
        """Send CPU tensors to the next stage; they may be changed at once.

        Returns:
            No handles: there is nothing to wait for.
        """
        (sender,) = self._senders
        form = {
            name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in tensors.items()
        }
        payload = [memoryview(_bytes_of(tensor).numpy()) for tensor in tensors.values()]
        sender.send([json.dumps(form).encode(), *payload])
        return []

    def receive(self) -> tuple[dict[str, torch.Tensor], list[Any], list[Callable[[], None]]]:
        """Return a dictionary, no handles, and what fills the dictionary when it is called."""
        tensors: dict[str, torch.Tensor] = {}

        def fill() -> None:
            assert self._receiver is not None
            form, *payload = self._receiver.receive()
            for (name, (shape, dtype)), data in zip(json.loads(form).items(), payload, strict=True):
                flat = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))
                tensors[name] = flat.view(shape)

        return tensors, [], [fill]


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8).flatten()
