"""Whether sampled text is distributed as the target says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from support import engine as e
from support.reference import Reference


def check_distribution(llm: Any, reference: Reference, prompt: Sequence[int]) -> None:
    """At T = 1 the first token that may have been drafted is distributed as the target's.

    That is the third one, looked at where the first is the likeliest.
    """
    samples = 6000
    sampling = e.params(3, temperature=1.0, logprobs=None)
    requests = [{"prompt_token_ids": list(prompt)}] * samples
    _, hits_before, _ = e.counts(llm)
    outputs = llm.generate(requests, sampling, use_tqdm=False)
    assert e.counts(llm)[1] > hits_before
    (first,) = reference.greedy(prompt, 1)
    third = [ids[2] for output in outputs if (ids := output.outputs[0].token_ids)[0] == first]
    assert len(third) > samples / 10
    seen = torch.bincount(torch.tensor(third), minlength=512).double()
    expected = len(third) * reference.second_token([*prompt, first])
    common = expected >= 5
    observed = torch.cat([seen[common], seen[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    degrees = torch.tensor(len(wanted) - 1.0).double()
    probability = 1 - torch.special.gammainc(degrees / 2, statistic / 2)
    assert probability > 1e-3
