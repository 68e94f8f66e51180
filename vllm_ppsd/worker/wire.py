"""One-way messages from worker to worker: states, drafts, verdicts, states sent back.

A message is one trip over the network, whatever its size, and the next one need not
wait for it: ZeroMQ's sockets push. (gloo asks the receiver first, and vLLM's hand-over
between stages is four gloo messages one after the other, so on a link with a delay it
takes seven trips.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

import torch.distributed
import zmq


class Kind(Enum):
    """What a wire carries."""

    STATES = "states"
    DRAFTS = "drafts"
    VERDICTS = "verdicts"
    FEEDBACK = "deeper states"


class WireError(RuntimeError):
    """Nothing came over a wire for too long."""


class Receiver:
    """The receiving end of a wire.

    Args:
        host: address to listen at.
        kind: what it carries.
        patience: seconds to wait for a message.
    """

    def __init__(self, host: str, kind: Kind, patience: float) -> None:
        self._kind, self._patience = kind, patience
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        port: int = self._socket.bind_to_random_port(f"tcp://{host}")
        self.address = f"tcp://{host}:{port}"

    def ready(self) -> bool:
        """Whether a message is there, so that ``receive`` would not wait."""
        return bool(self._socket.poll(0))

    def receive(self) -> list[bytes]:
        """Wait for the next message; return its parts.

        Raises:
            WireError: the other end is silent.
        """
        if not self._socket.poll(int(1000 * self._patience)):
            raise WireError(
                f"no {self._kind.value} came from the other stage for {self._patience:.0f} s "
                "(VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS): it hangs, or the network does"
            )
        parts: list[bytes] = self._socket.recv_multipart()
        return parts


class Sender:
    """The sending end of a wire. Sends never wait.

    Args:
        address: of the receiver.
    """

    def __init__(self, address: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        # What was not delivered when the worker stops is of no use to anybody.
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)

    def send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send a message, which is copied."""
        self._socket.send_multipart(parts)


def lay(
    receives: Mapping[Kind, Receiver], sends: Mapping[Kind, Iterable[int]], group: Any
) -> dict[Kind, list[Sender]]:
    """Tell all stages of a pipeline where to send to; every stage must call it.

    Args:
        receives: what this stage receives.
        sends: what it sends, and the places of the receiving stages in the pipeline.
        group: the pipeline's CPU process group.

    Returns:
        The sending ends.
    """
    mine = {kind: receiver.address for kind, receiver in receives.items()}
    theirs: list[dict[Kind, str]] = [{}] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(theirs, mine, group=group)
    return {
        kind: [Sender(theirs[stage][kind]) for stage in stages] for kind, stages in sends.items()
    }
