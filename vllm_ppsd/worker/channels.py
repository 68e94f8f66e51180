"""One-way typed messages from worker to worker.

A message is one trip over the network, whatever its size, and the next one need not
wait for it: ZeroMQ's sockets push. (gloo asks the receiver first, and vLLM's hand-over
between stages is four gloo messages one after the other, so on a link with a delay it
takes seven trips.)
"""

from __future__ import annotations

import hashlib
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import torch
import torch.distributed
import zmq
from vllm.distributed.parallel_state import get_pp_group
from vllm.utils.network_utils import get_tcp_uri, make_zmq_socket
from zmq.utils.monitor import recv_monitor_message

from vllm_ppsd.worker.messages import Kind

M = TypeVar("M")

_SCHEMA = msgspec.json.schema_components([kind.value for kind in Kind])
VERSION = hashlib.sha256(msgspec.json.encode(_SCHEMA)).digest()[:4]
"""First bytes of every message; they change with what messages look like."""


_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class ChannelError(RuntimeError):
    """No message came for too long, the sender is gone, or another one than was due came."""


class Receiver(Generic[M]):
    """The receiving end of a channel.

    Args:
        host: address to listen at, IPv4 or IPv6.
        kind: what it carries.
        patience: seconds to wait for a message.
    """

    def __init__(self, host: str, kind: Kind, patience: float) -> None:
        self._name, self._patience = kind.name.lower(), patience
        self._decoder = msgspec.msgpack.Decoder(kind.value)
        self._socket = make_zmq_socket(
            zmq.Context.instance(), get_tcp_uri(host, 0), zmq.PULL, bind=True
        )
        self.address: str = self._socket.getsockopt(zmq.LAST_ENDPOINT).decode()
        self._peers = _Peers(self._socket)
        self._poller = zmq.Poller()
        for socket in (self._socket, self._peers.events):
            self._poller.register(socket, zmq.POLLIN)
        weakref.finalize(self, _close, self._socket, self._peers.events)

    def ready(self) -> bool:
        """Whether a message is there, so that ``receive`` would not wait."""
        return bool(self._socket.poll(0))

    def receive(self, tick: int | None = None) -> M:
        """Wait for the next message; as ``receive_with_buffers``."""
        return self.receive_with_buffers(tick)[0]

    def receive_with_buffers(self, tick: int | None = None) -> tuple[M, list[bytes]]:
        """Wait for the next message; return it, and the buffers that follow it.

        Args:
            tick: number of the tick whose message is due; None if the caller checks.

        Raises:
            ChannelError: the other end is silent, is gone, speaks another version, or sent
                the message of another tick.
        """
        self._wait()
        body, *buffers = self._socket.recv_multipart()
        version, encoded = body[: len(VERSION)], memoryview(body)[len(VERSION) :]
        if version != VERSION:
            raise ChannelError(
                f"{self._name} came in message format {version.hex()}, and this stage reads "
                f"{VERSION.hex()}: install the same version of vllm-ppsd on all nodes"
            )
        message: Any = self._decoder.decode(encoded)
        if tick is not None and message.tick != tick:
            raise ChannelError(
                f"{self._name} of tick {message.tick} came where those of tick {tick} were due"
            )
        return message, buffers

    def _wait(self) -> None:
        deadline = time.monotonic() + self._patience
        while not self.ready():
            if self._peers.lost:
                raise ChannelError(
                    f"no {self._name} will come: the process of the stage that sends them has "
                    "ended, or the network between has failed"
                )
            left = deadline - time.monotonic()
            if left <= 0:
                raise ChannelError(
                    f"no {self._name} came from the other stage for {self._patience:.0f} s "
                    "(VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS): it hangs, or the network does"
                )
            # What a sender sent before it ended is received first.
            if self._peers.events in dict(self._poller.poll(int(1000 * left) + 1)):
                self._peers.update()


def _close(socket: zmq.Socket[bytes], events: zmq.Socket[bytes]) -> None:
    """Close a receiving end; its events end first.

    Where garbage collection closes ``events`` before, ZeroMQ's thread waits for ever to report
    the next one, and nothing more reaches this process on any channel.
    """
    socket.disable_monitor()
    for one in (socket, events):
        one.close(0)


class _Peers:
    """Whether the processes at the sending ends of a socket are there.

    Args:
        socket: the receiving end.

    Attributes:
        events: readable when ``update`` has something to do.
        lost: whether a sender that was connected is not any more.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.events = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | _REFUSED)
        self.lost = False
        self._strangers = 0

    def update(self) -> None:
        """Take in what has happened to one connection."""
        if recv_monitor_message(self.events)["event"] & _REFUSED:
            # Whoever probes ports speaks no ZeroMQ; its disconnection is the next event.
            self._strangers += 1
        elif self._strangers:
            self._strangers -= 1
        else:
            self.lost = True


class Sender(Generic[M]):
    """The sending end of a channel. Sends never wait.

    Args:
        addresses: of the receivers.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._sockets: list[zmq.Socket[bytes]] = []
        for address in addresses:
            # What was not delivered when the worker stops is of no use to anybody.
            socket = make_zmq_socket(zmq.Context.instance(), address, zmq.PUSH, linger=0)
            self._sockets.append(socket)

    def send(
        self,
        message: M,
        buffers: Sequence[memoryview] = (),
        to_first: Sequence[memoryview] = (),
    ) -> None:
        """Send a message, and buffers behind it, which are copied.

        Args:
            message: the message.
            buffers: for all receivers.
            to_first: for the first receiver alone, behind those for all.
        """
        parts: list[bytes | memoryview] = [VERSION + self._encoder.encode(message), *buffers]
        first, *others = self._sockets
        first.send_multipart([*parts, *to_first])
        for socket in others:
            socket.send_multipart(parts)

    def close(self) -> None:
        """Send no more: receivers learn that nothing will come."""
        for socket in self._sockets:
            socket.close(0)


class StageChannels:
    """All channels of a stage; making them is a collective call of the pipeline's stages.

    Args:
        host: this stage's address, at which the others reach it.
        patience: seconds to wait for a message.
        states: whether hidden states go over channels, too.
        places: whether middle stages need the drafts, to know where lanes stand.
        feedback: the stages that send their states back to the first.

    Attributes:
        stage: this stage's number.
        receivers: of what this stage receives.
        senders: of what it sends.
    """

    def __init__(
        self,
        host: str,
        patience: float,
        states: bool,
        places: bool = False,
        feedback: Sequence[int] = (),
    ) -> None:
        group = get_pp_group()
        first, last = group.is_first_rank, group.is_last_rank
        behind = group.world_size - 1
        receives = {
            Kind.STATES: states and not first,
            Kind.DRAFTS: last or (places and not first),
            Kind.VERDICTS: not last,
            Kind.FEEDBACK: first and bool(feedback),
            Kind.PASSES: last,
        }
        targets: dict[Kind, Iterable[int]] = {
            Kind.STATES: [group.rank_in_group + 1] if states and not last else [],
            Kind.DRAFTS: (range(1, behind + 1) if places else [behind]) if first else [],
            Kind.VERDICTS: range(behind) if last else [],
            Kind.FEEDBACK: [0] if group.rank_in_group in feedback else [],
            Kind.PASSES: [] if first or last else [behind],
        }
        self.stage = group.rank_in_group
        self.receivers: dict[Kind, Receiver[Any]] = {
            kind: Receiver(host, kind, patience) for kind, mine in receives.items() if mine
        }
        self.senders = connect(self.receivers, targets, group.cpu_group)


def connect(
    receives: Mapping[Kind, Receiver[Any]], sends: Mapping[Kind, Iterable[int]], group: Any
) -> dict[Kind, Sender[Any]]:
    """Tell all stages of a pipeline where to send to; every stage must call it.

    Args:
        receives: what this stage receives.
        sends: what it sends, and the places of the receiving stages in the pipeline.
        group: the pipeline's CPU process group.

    Returns:
        The sending ends of what it sends.
    """
    mine = {kind: receiver.address for kind, receiver in receives.items()}
    theirs: list[dict[Kind, str]] = [{}] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(theirs, mine, group=group)
    return {
        kind: Sender(theirs[stage][kind] for stage in stages)
        for kind, stages in sends.items()
        if stages
    }


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a CPU tensor, without a copy where it is contiguous."""
    return memoryview(tensor.contiguous().view(torch.uint8).flatten().numpy())
