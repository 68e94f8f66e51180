"""``make demo``: plain pipeline decoding and PPSD on the same prompts, side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from vllm_ppsd.offline import engine
from vllm_ppsd.progress import Bar, progress
from vllm_ppsd.training.prompts import chat_tokens

PROMPTS = (
    "Why is the sky blue? Answer in three sentences.",
    "Write a Python function that checks whether a word is a palindrome.",
    "I have 15 apples, eat 3 and buy twice as many as are left. How many do I have?",
)


@dataclass
class Run:
    """What one engine did.

    Attributes:
        tokens: output token ids per prompt.
        seconds: decoding time of all prompts, first tokens left out.
        drafts: retired drafts.
        hits: of those, hits.
    """

    tokens: list[list[int]] = field(default_factory=list)
    seconds: float = 0.0
    drafts: int = 0
    hits: int = 0

    @property
    def ms_per_token(self) -> float:
        return 1000 * self.seconds / sum(len(tokens) - 1 for tokens in self.tokens)


def run(model: str, max_tokens: int) -> int:
    """Run both engines one after the other; return 1 if their output differs."""
    from vllm_ppsd.exit_head import lookup

    console = Console()
    head = lookup.find(None, model)
    partition = head.config.two_stages
    ppsd = {"method": "ppsd", "model": str(head.path)}
    console.rule("plain pipeline decoding")
    plain = _run(console, model, partition, max_tokens, {})
    console.rule("PPSD")
    speculative = _run(console, model, partition, max_tokens, {"speculative_config": ppsd})
    same = plain.tokens == speculative.tokens
    _print_table(console, plain, speculative, same)
    if speculative.seconds >= plain.seconds:
        console.print(
            f"With the exit head {head.path.name} ({head.config.head_type}), which hits in "
            f"{speculative.hits} of {speculative.drafts} drafts here, PPSD does not pay. "
            "Train a better one: vllm-ppsd train --help."
        )
    return int(not same)


def _run(
    console: Console, model: str, partition: list[int], max_tokens: int, options: dict[str, Any]
) -> Run:
    console.print("starting the engine (about two minutes, most of it torch.compile) …")
    with engine(model, partition, disable_log_stats=False, **options) as llm:
        return _generate(console, llm, max_tokens, drafting=bool(options))


def _generate(console: Console, llm: Any, max_tokens: int, drafting: bool) -> Run:
    result = Run()
    _stream(console, llm, "Hello", 8, None)
    for number, prompt in enumerate(PROMPTS, 1):
        console.print(f"[bold]{prompt}[/bold]")
        with progress(f"prompt {number} of {len(PROMPTS)}", console) as bar:
            tokens, seconds = _stream(console, llm, prompt, max_tokens, bar)
        result.tokens.append(tokens)
        result.seconds += seconds
    if drafting:
        metrics = {metric.name: metric for metric in llm.get_metrics()}
        result.drafts = metrics["vllm:spec_decode_num_draft_tokens"].value
        result.hits = metrics["vllm:spec_decode_num_accepted_tokens"].value
    return result


def _stream(
    console: Console, llm: Any, prompt: str, max_tokens: int, bar: Bar | None
) -> tuple[list[int], float]:
    """Generate for one prompt, print text line by line; return tokens and decode seconds."""
    from vllm import SamplingParams

    asked: Any = {"prompt_token_ids": chat_tokens(llm.get_tokenizer(), prompt)}
    (request,) = llm.renderer.render_cmpl([asked])
    core = llm.llm_engine
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    core.add_request(f"demo-{time.monotonic_ns()}", request, params)
    tokens: list[int] = []
    printed = 0
    first = last = time.perf_counter()
    while core.has_unfinished_requests():
        for output in core.step():
            completion = output.outputs[0]
            last = time.perf_counter()
            if not tokens:
                first = last
            tokens = list(completion.token_ids)
            if bar is None:
                continue
            bar.to(len(tokens), max_tokens)
            whole = len(completion.text) if output.finished else completion.text.rfind("\n") + 1
            if whole > printed:
                console.print(completion.text[printed:whole].rstrip("\n"), markup=False)
                printed = whole
    return tokens, last - first


def _print_table(console: Console, plain: Run, ppsd: Run, same: bool) -> None:
    table = Table(title="one request, two pipeline stages")
    for heading in ("", "tokens/s", "ms per token", "acceptance rate", "speedup"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, seen in (("plain pipeline", plain), ("PPSD", ppsd)):
        alpha = f"{seen.hits / seen.drafts:.2f}" if seen.drafts else ""
        table.add_row(
            name,
            f"{1000 / seen.ms_per_token:.1f}",
            f"{seen.ms_per_token:.1f}",
            alpha,
            f"{plain.ms_per_token / seen.ms_per_token:.2f}",
        )
    console.print(table)
    console.print(f"identical output: {'yes' if same else 'no'}")
