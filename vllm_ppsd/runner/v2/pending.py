"""Steps of a stage that its device has not finished, and the buffers that they read."""

from __future__ import annotations

from collections import deque

import torch


class PendingSteps:
    """Lets no more steps of a stage be pending than V2 has input buffers for.

    vLLM has as many as steps are in flight, and reuses them without waiting. The last stage answers
    a tick of stale lanes at once, so that a stage before it may have more steps on its device.

    Args:
        device: of the stage.
        most: how many steps there are buffers for.
    """

    def __init__(self, device: torch.device, most: int) -> None:
        self._device, self._most = device, most
        self._ends: deque[torch.cuda.Event] = deque()

    def begin(self) -> None:
        """A step begins: wait for the one that has read the buffers it writes to."""
        if len(self._ends) == self._most:
            self._ends.popleft().synchronize()

    def end(self) -> None:
        """All that reads the step's input buffers is on its way to the device."""
        if self._device.type == "cpu":
            return
        end = torch.cuda.Event(blocking=True)
        end.record()
        self._ends.append(end)
