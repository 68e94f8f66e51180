"""How long drafting on one device should go on: bound and threshold, by the cost of a draft.

No engine: the head's hits and probabilities on the target's own greedy answers decide
what each round would draft and verify. Behind a miss the head is taken to see what it
saw there in the right text.

    python -m benchmarks.draft_length HEAD MODEL --prompts FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.speedup import draft_threshold, round_cost
from vllm_ppsd.training.build import trained
from vllm_ppsd.training.dataset import StateSet
from vllm_ppsd.training.evaluate import BATCH_TOKENS, evaluation_recipe
from vllm_ppsd.training.generate import generate
from vllm_ppsd.training.packing import pack
from vllm_ppsd.training.recipe import Cache
from vllm_ppsd.training.states import cache_states

COSTS = (0.15, 0.25, 0.35, 0.45, 0.57)
BOUNDS = (1, 2, 3, 5, 8)
THRESHOLDS = tuple(step / 20 for step in range(20))

Answer = tuple[list[bool], list[float]]
"""Whether the head is right at each position of an answer, and how sure it is."""


def main() -> None:
    """Print the table."""
    arguments = _parser().parse_args()
    answers = _answers(arguments)
    bounds = " | ".join(f"K = {bound}" for bound in BOUNDS)
    print(
        f"| cost of a draft | best threshold | {bounds} | default threshold | K = 5 | K = 5 at 0 |"
    )
    print("| --- " * (len(BOUNDS) + 5) + "|")
    for cost in COSTS:
        best = max((speedup(answers, BOUNDS[-1], t, cost), t) for t in THRESHOLDS)[1]
        default = draft_threshold(cost)
        figures = [
            cost,
            best,
            *(speedup(answers, bound, best, cost) for bound in BOUNDS),
            default,
            speedup(answers, 5, default, cost),
            speedup(answers, 5, 0.0, cost),
        ]
        print("| " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")


def speedup(answers: Sequence[Answer], bound: int, threshold: float, cost: float) -> float:
    """Return tokens per full pass's time.

    Args:
        bound: drafts of a round, at most.
        threshold: nothing is drafted behind a draft that is less probable.
        cost: of a draft, in full passes.
    """
    tokens = passes = 0.0
    for hits, probabilities in answers:
        # The first answer token comes from the prompt's pass.
        at = 1
        while at < len(hits):
            drafts = 0
            for probability in probabilities[at : at + bound]:
                drafts += 1
                if probability < threshold:
                    break
            right = hits[at : at + drafts]
            delivered = 1 + (right.index(False) if False in right else drafts)
            passes += round_cost(drafts, cost)
            tokens += delivered
            at += delivered
    return tokens / passes


def _answers(arguments: argparse.Namespace) -> list[Answer]:
    device = torch.device("cpu")
    folder = ExitHeadFolder.open(arguments.head)
    folder.check_target(arguments.model)
    exit_layer = folder.config.exit_layer
    recipe = evaluation_recipe(arguments.model, exit_layer, arguments.prompts, 256, device)
    generate(recipe, arguments.work, device)
    cache_states(arguments.model, Cache(), [exit_layer], arguments.work, device)
    states = StateSet(arguments.work / "states", exit_layer)
    head, vocabulary = trained(folder, arguments.model)
    answers: list[Answer] = []
    with torch.inference_mode():
        for documents in pack(states.documents, BATCH_TOKENS):
            batch = states.batch(documents)
            logits = head(batch.states, batch.lengths, batch.rows, batch.deeper).float()
            probabilities, drafts = torch.softmax(logits, dim=-1).max(dim=-1)
            hits = vocabulary.tokens(drafts) == batch.next
            edges = [*(batch.offsets == 0).nonzero().flatten().tolist(), len(hits)]
            answers += [
                (hits[first:end].tolist(), probabilities[first:end].tolist())
                for first, end in pairwise(edges)
            ]
    return answers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("head", type=Path, help="exit-head folder")
    parser.add_argument("model", help="the target")
    parser.add_argument("--prompts", nargs="+", required=True, help="JSONL files or folders")
    parser.add_argument("--work", type=Path, default=Path("ppsd-work"), help="as of vllm-ppsd eval")
    return parser


if __name__ == "__main__":
    main()
