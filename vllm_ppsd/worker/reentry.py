"""Final states for re-entry bursts: from the last stage to stage 0, with the verdict.

Where no lane continues an outcome, the request re-enters with its last token, and stage 0 drafts
behind that from the state that the token was sampled from: the LM head's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_ppsd.protocol import Lane, Outcome, Verdict
from vllm_ppsd.to_device import on_device
from vllm_ppsd.worker.channels import bytes_of


def payload(
    final: torch.Tensor, lanes: Sequence[Lane], outcomes: Sequence[Outcome]
) -> list[memoryview]:
    """Return the bytes of the states that the last tokens of some outcomes were sampled from.

    Args:
        final: [rows, hidden], of every row that the LM head has run over.
        lanes: of the tick, in the order of the runner's rows.
        outcomes: of some of the lanes.
    """
    first, row = {}, 0
    for lane in lanes:
        first[lane.request_id] = row
        # vLLM samples of a prompt's chunk as well.
        row += max(1, lane.samples)
    rows = [first[outcome.request_id] + len(outcome.tokens) - 1 for outcome in outcomes]
    return [bytes_of(final[on_device(rows, final.device)].detach().cpu())]


class FinalStates:
    """Stage 0's: the newest token and final state of every request that may re-enter.

    Args:
        hidden_size: of a state.
        dtype: of the states.
        device: where the head wants them.
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._hidden_size, self._dtype, self._device = hidden_size, dtype, device
        self._states: dict[str, tuple[int, int, torch.Tensor]] = {}

    def receive(
        self, verdict: Verdict, buffers: Sequence[bytes], knows: Callable[[str], bool]
    ) -> None:
        """Take in what came with a verdict.

        Args:
            verdict: the verdict.
            buffers: that followed it.
            knows: whether a request has not left: a verdict may come in after that.
        """
        if not verdict.final:
            return
        flat = torch.frombuffer(bytearray(buffers[0]), dtype=self._dtype)
        states = flat.view(-1, self._hidden_size)
        for request_id, state in zip(verdict.final, states, strict=True):
            if knows(request_id):
                token = verdict.outcomes[request_id].tokens[-1]
                self._states[request_id] = verdict.tick, token, state.clone()

    def take(self, lanes: Sequence[Lane]) -> tuple[list[int], torch.Tensor]:
        """Return the known tokens of re-entry bursts, and the final states before them.

        They are kept no longer.

        Returns:
            One token per lane, and [lanes, hidden].

        Raises:
            LookupError: a state is not there: scheduler and last stage disagree.
        """
        tokens, states = [], []
        for lane in lanes:
            tick, token, state = self._states.pop(lane.request_id, (None, 0, None))
            if state is None or tick != lane.after:
                raise LookupError(
                    f"no final state of tick {lane.after} for the re-entry of request "
                    f"{lane.request_id!r} at position {lane.position}: the newest is of tick {tick}"
                )
            tokens.append(token)
            states.append(state)
        return tokens, async_tensor_h2d(torch.stack(states), device=self._device, dtype=self._dtype)

    def forget(self, request_id: str) -> None:
        """Drop what is kept of a request that has left, or that re-enters without drafts."""
        self._states.pop(request_id, None)

    def __len__(self) -> int:
        return len(self._states)
