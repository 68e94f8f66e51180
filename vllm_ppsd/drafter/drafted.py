"""What a drafter returns: drafts that the device may still be making."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import overload

import msgspec
import torch

from vllm_ppsd.protocol import ON_DEVICE, Candidate
from vllm_ppsd.to_device import on_device
from vllm_ppsd.to_host import HostCopy


class DeviceTokens(Sequence[int]):
    """Token ids on the device. Whoever looks at one waits for the device; to count and to slice
    them takes no wait.

    Args:
        tensor: int64 [tokens].
        on_host: returns the ids of the tensor that this is a slice of; waits for the device.
        start: where the slice begins.

    Attributes:
        tensor: as given.
    """

    def __init__(
        self, tensor: torch.Tensor, on_host: Callable[[], Sequence[int]], start: int = 0
    ) -> None:
        self.tensor = tensor
        self._on_host, self._start = on_host, start

    def __len__(self) -> int:
        return len(self.tensor)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> DeviceTokens: ...

    def __getitem__(self, index: int | slice) -> int | DeviceTokens:
        here = range(self._start, self._start + len(self))[index]
        if isinstance(here, range):
            return DeviceTokens(self.tensor[index], self._on_host, here.start)
        return self._on_host()[here]


@dataclass(frozen=True)
class Drafted:
    """Drafts of some requests.

    Attributes:
        forms: per request, its candidate without values: ``ON_DEVICE`` in the place of tokens,
            and no probabilities.
        tokens: of all requests, one behind the other.
        probabilities: returns those of all tokens, waiting for the device; None where nobody
            reads them.
    """

    forms: Sequence[Candidate]
    tokens: DeviceTokens
    probabilities: Callable[[], Sequence[float]] | None = None

    @classmethod
    def made(
        cls,
        forms: Sequence[Candidate],
        tokens: torch.Tensor,
        probabilities: torch.Tensor | None = None,
    ) -> Drafted:
        """Return drafts that the device makes; their copies to the host begin.

        Args:
            forms: as the attribute.
            tokens: int64 [drafts], request by request.
            probabilities: float32 [drafts].
        """
        copy = HostCopy(tokens)
        of_host = HostCopy(probabilities) if probabilities is not None else None
        return cls(
            forms,
            DeviceTokens(tokens, copy.values),
            of_host.values if of_host is not None else None,
        )

    @classmethod
    def known(cls, candidates: Sequence[Candidate], device: torch.device) -> Drafted:
        """Return drafts that the host knows."""
        drafts = [draft for candidate in candidates for draft in candidate.drafts]
        tokens = [draft.token for draft in drafts]
        probabilities = [p for draft in drafts if (p := draft.probability) is not None]
        forms = [
            msgspec.structs.replace(
                candidate,
                drafts=tuple(
                    msgspec.structs.replace(draft, token=ON_DEVICE, probability=None)
                    for draft in candidate.drafts
                ),
            )
            for candidate in candidates
        ]
        return cls(
            forms,
            DeviceTokens(on_device(tokens, device), lambda: tokens),
            (lambda: probabilities) if probabilities else None,
        )

    def of_each(self) -> list[DeviceTokens]:
        """Return the tokens of each request."""
        ends = accumulate(len(form.drafts) for form in self.forms)
        return [
            self.tokens[end - len(form.drafts) : end]
            for form, end in zip(self.forms, ends, strict=True)
        ]

    def candidates(self) -> list[Candidate]:
        """Return the candidate of each request; waits for the device."""
        tokens = iter(self.tokens)
        probabilities = iter(self.probabilities() if self.probabilities is not None else ())
        return [
            msgspec.structs.replace(
                form,
                drafts=tuple(
                    msgspec.structs.replace(
                        draft, token=next(tokens), probability=next(probabilities, None)
                    )
                    for draft in form.drafts
                ),
            )
            for form in self.forms
        ]
