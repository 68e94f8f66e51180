"""``make demo``: plain pipeline decoding and PPSD on the same prompts, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.tools.engines import Timed, engine, generate, settle
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.prompts import chat_tokens

PROMPTS = (
    "Why is the sky blue? Answer in three sentences.",
    "Write a Python function that checks whether a word is a palindrome.",
    "I have 15 apples, eat 3 and buy twice as many as are left. How many do I have?",
)

PLAIN, PPSD = "plain pipeline", "PPSD"
BUSY = 0.15
"""Spread of plain decoding's times, as a share of their median, from which on the machine is too
busy for a speedup to mean anything."""


@dataclass(frozen=True)
class Turn:
    """One prompt, answered once by each engine."""

    plain: Timed
    ppsd: Timed


def run(model: str, max_tokens: int, exact: bool) -> int:
    """Answer every prompt twice with each engine; print answers, speed, and what is identical.

    Returns:
        1 if PPSD was exact and an answer differs from plain decoding's.
    """
    console = Console()
    head = find(None, model)
    options = {"exact": True} if exact else {}
    ways = {
        PLAIN: None,
        PPSD: {"method": "ppsd", "model": str(head.path)} | options,
    }
    with ExitStack() as stack:
        engines = {}
        for name, speculation in ways.items():
            console.print(f"{name}: starting the engine (a minute or two, mostly compiling) …")
            engines[name] = stack.enter_context(
                engine(model, partition=head.config.two_stages, speculative_config=speculation)
            )
        turns = _turns(console, engines, max_tokens)
    console.print(table(turns))
    for line in remarks(turns, exact):
        console.print(line)
    return int(exact and not all(_same(turn) for turn in turns))


def remarks(turns: Sequence[Turn], exact: bool) -> list[str]:
    """Return what is identical to what, and whether the speedup means anything."""
    same = sum(map(_same, turns))
    promise = (
        "exact mode: every token must be plain decoding's"
        if exact
        else "default mode: the same up to ties of rounding; --exact gives bit-identical answers"
    )
    lines = [f"answers identical to the plain pipeline's: {same} of {len(turns)} ({promise})"]
    if (spread := _spread(turns)) > BUSY:
        lines.append(
            f"The machine was busy: plain decoding took {spread:.0%} longer at one time than at "
            "another, so the speedup says little. Run it again when nothing else runs."
        )
    elif _ms_per_token([t.ppsd for t in turns]) >= _ms_per_token([t.plain for t in turns]):
        lines.append("PPSD does not pay here. Train a better head: vllm-ppsd train --help.")
    return lines


def table(turns: Sequence[Turn]) -> Table:
    """Return speed and acceptance of both engines."""
    made = Table(title="one request, two pipeline stages")
    for heading in ("", "tokens/s", "ms per token", "drafts accepted", "speedup"):
        made.add_column(heading, justify="right" if heading else "left")
    plain = _ms_per_token([turn.plain for turn in turns])
    both = {PLAIN: [turn.plain for turn in turns], PPSD: [turn.ppsd for turn in turns]}
    for name, answers in both.items():
        time = _ms_per_token(answers)
        drafts = sum(answer.drafts for answer in answers)
        rate = sum(answer.hits for answer in answers) / drafts if drafts else None
        made.add_row(
            name,
            f"{1000 / time:.0f}",
            f"{time:.1f}",
            "" if rate is None else f"{rate:.2f}",
            f"{plain / time:.2f}",
        )
    return made


def _turns(console: Console, engines: dict[str, Any], max_tokens: int) -> list[Turn]:
    tokenizer = engines[PLAIN].get_tokenizer()
    prompts = [chat_tokens(tokenizer, prompt) for prompt in PROMPTS]
    for llm in engines.values():
        generate(llm, prompts[0], 32)
    turns = []
    with progress("turns", console) as bar:
        for number, (text, prompt) in enumerate(
            bar.track([*zip(PROMPTS, prompts, strict=True)] * 2)
        ):
            answers = {}
            for name, llm in list(engines.items())[:: -1 if number % 2 else 1]:
                settle()
                answers[name] = generate(llm, prompt, max_tokens, ignore_eos=False)
            turns.append(Turn(answers[PLAIN], answers[PPSD]))
            if number < len(PROMPTS):
                answer = tokenizer.decode(answers[PPSD].tokens, skip_special_tokens=True)
                console.print(f"[bold]{text}[/bold]")
                console.print(answer, markup=False)
    return turns


def _same(turn: Turn) -> bool:
    return turn.plain.tokens == turn.ppsd.tokens


def _spread(turns: Sequence[Turn]) -> float:
    times = [turn.plain.ms_per_token for turn in turns]
    return (max(times) - min(times)) / statistics.median(times)


def _ms_per_token(answers: Sequence[Timed]) -> float:
    tokens = sum(len(answer.tokens) - 1 for answer in answers)
    return 1000 * sum(answer.decode_seconds for answer in answers) / tokens
