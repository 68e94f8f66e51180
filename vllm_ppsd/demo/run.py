"""``make demo``: plain pipeline decoding and PPSD on the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.tools.engines import Timed, engine, generate
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.prompts import chat_tokens

PROMPTS = (
    "Why is the sky blue? Answer in three sentences.",
    "Write a Python function that checks whether a word is a palindrome.",
    "I have 15 apples, eat 3 and buy twice as many as are left. How many do I have?",
)


def run(model: str, max_tokens: int) -> int:
    """Run both engines one after the other; return 1 if their output differs."""
    console = Console()
    head = find(None, model)
    ppsd = {"method": "ppsd", "model": str(head.path)}
    answers = []
    for name, speculation in (("plain pipeline decoding", None), ("PPSD", ppsd)):
        console.rule(name)
        console.print("starting the engine (about two minutes, most of it torch.compile) …")
        partition = head.config.two_stages
        with engine(model, partition=partition, speculative_config=speculation) as llm:
            answers.append(_answers(console, llm, max_tokens))
    plain, drafted = answers
    same = [one.tokens for one in plain] == [one.tokens for one in drafted]
    console.print(_table(plain, drafted))
    console.print(f"identical output: {'yes' if same else 'no'}")
    if _ms_per_token(drafted) >= _ms_per_token(plain):
        console.print(
            f"With the exit head {head.path.name} ({head.config.head_type}) PPSD does not pay "
            "here. Train a better one: vllm-ppsd train --help."
        )
    return int(not same)


def _answers(console: Console, llm: Any, max_tokens: int) -> list[Timed]:
    tokenizer = llm.get_tokenizer()
    prompts = [chat_tokens(tokenizer, prompt) for prompt in PROMPTS]
    generate(llm, prompts[0], 8)
    answers = []
    with progress("prompts", console) as bar:
        for text, prompt in zip(PROMPTS, bar.track(prompts), strict=True):
            answers.append(generate(llm, prompt, max_tokens, ignore_eos=False))
            answer = tokenizer.decode(answers[-1].tokens, skip_special_tokens=True)
            console.print(f"[bold]{text}[/bold]")
            console.print(answer, markup=False)
    return answers


def _ms_per_token(answers: Sequence[Timed]) -> float:
    tokens = sum(len(answer.tokens) - 1 for answer in answers)
    return 1000 * sum(answer.decode_seconds for answer in answers) / tokens


def _table(plain: Sequence[Timed], ppsd: Sequence[Timed]) -> Table:
    table = Table(title="one request, two pipeline stages")
    for heading in ("", "tokens/s", "ms per token", "acceptance rate", "speedup"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, answers in (("plain pipeline", plain), ("PPSD", ppsd)):
        time = _ms_per_token(answers)
        drafts = sum(answer.drafts for answer in answers)
        rate = sum(answer.hits for answer in answers) / drafts if drafts else None
        table.add_row(
            name,
            f"{1000 / time:.1f}",
            f"{time:.1f}",
            "" if rate is None else f"{rate:.2f}",
            f"{_ms_per_token(plain) / time:.2f}",
        )
    return table
