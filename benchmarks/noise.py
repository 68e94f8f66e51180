"""What coupled sampling costs a tick: stage 0's noise and draw, and the last stage's.

No engine: the functions that the stages call, on random logits, in turns with vLLM's own
sampling step. One row is one sampled request.

    python -m benchmarks.noise [--vocabulary 49152] [--draft-vocabulary 12288]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from vllm import SamplingParams
from vllm.platforms import current_platform
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

from benchmarks import arguments
from vllm_ppsd.bench.origin import deliver, footer, origin, said
from vllm_ppsd.sampling.drafts import draw
from vllm_ppsd.sampling.noise import exponential_noise, state
from vllm_ppsd.sampling.proposals import draw_proposals
from vllm_ppsd.sampling.rejection import RejectionSampler
from vllm_ppsd.sampling.sampler import CoupledSampler


def main() -> None:
    """Measure, and print the table."""
    given = _parser().parse_args()
    torch.set_num_threads(given.threads)
    current_platform.import_kernels()
    rows = [
        {"what": name, "rows": count} | _time(step, given.repeats)
        for count in given.rows
        for name, step in _steps(count, given.vocabulary, given.draft_vocabulary).items()
    ]
    lines = ["| step | rows | ms, median (quartiles) |", "| --- | --- | --- |"]
    lines += [
        f"| {r['what']} | {r['rows']} | {r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f}) |"
        for r in rows
    ]
    report = {"rows": rows} | origin(said("python -m benchmarks.noise", ""))
    deliver(report, "\n".join([*lines, "", footer(report)]), given.json)


def _steps(count: int, vocabulary: int, drafts: int) -> dict[str, Callable[[], Any]]:
    logits, head = torch.randn(count, vocabulary), torch.randn(count, drafts)
    token_ids = torch.randperm(vocabulary)[:drafts].sort().values
    states = [state(7, position) for position in range(count)]
    plain = [SamplingParams()] * count
    nucleus = [SamplingParams(temperature=0.7, top_p=0.9)] * count
    stock = TopKTopPSampler()
    coupled, rejecting = CoupledSampler(stock), RejectionSampler(stock)
    drafted, proposals = draw_proposals(head, plain, states, token_ids, range(count))

    def last_stage() -> None:
        coupled.expect(states)
        coupled(logits, {}, None, None)

    def judging() -> None:
        rejecting.expect(states)
        rejecting.tell(drafted.tolist(), proposals)
        rejecting(logits, {}, None, None)

    return {
        "stage 0: noise": lambda: exponential_noise(torch.tensor(states), token_ids),
        "stage 0: draw": lambda: draw(head, plain, states, token_ids),
        "stage 0: draw, top-p": lambda: draw(head, nucleus, states, token_ids),
        "stage 0: draw, told": lambda: draw_proposals(head, plain, states, token_ids, range(count)),
        "last stage: coupled": last_stage,
        "last stage: rejection": judging,
        "last stage: vLLM's": lambda: stock(logits, {}, None, None),
    }


def _time(step: Callable[[], Any], repeats: int) -> dict[str, float]:
    taken = []
    for _ in range(repeats + 5):
        begin = time.perf_counter()
        step()
        taken.append(1000 * (time.perf_counter() - begin))
    low, median, high = statistics.quantiles(taken[5:], n=4)
    return {"low": low, "median": median, "high": high}


def _parser() -> Any:
    parser = arguments.parser(__doc__)
    parser.add_argument("--vocabulary", type=int, default=49152, help="the target's")
    parser.add_argument("--draft-vocabulary", type=int, default=12288, help="the head's")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="sampled requests")
    parser.add_argument("--threads", type=int, default=1, help="of a stage")
    parser.add_argument("--repeats", type=int, default=200, help="of every step")
    return parser


if __name__ == "__main__":
    main()
