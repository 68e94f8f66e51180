"""``vllm-ppsd trace``: one request by plain pipeline decoding and by PPSD, recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.files import write_whole
from vllm_ppsd.tools.engines import engine
from vllm_ppsd.tools.prompts import chat_tokens
from vllm_ppsd.trace.chrome import events
from vllm_ppsd.trace.picture import draw
from vllm_ppsd.trace.recording import record
from vllm_ppsd.trace.spans import Trace

PLAIN, PPSD = "plain pipeline decoding", "PPSD"
SHORTEST = 16
"""Fewer output tokens hardly show a steady state."""


def run(model: str, head: str | None, prompt: str, tokens: int, output: Path) -> int:
    """Record both engines and write the trace, the picture and a table to ``output``.

    Raises:
        PPSDConfigError: no head fits the model, or too few tokens are asked for.
    """
    if tokens < SHORTEST:
        raise PPSDConfigError(
            f"--tokens {tokens}: at least {SHORTEST} are needed to see a pipeline at work"
        )
    exit_head = find(head, model)
    partition = exit_head.config.two_stages
    output.mkdir(parents=True, exist_ok=True)
    console = Console()
    runs = {}
    for name, options in ((PLAIN, {"num_speculative_tokens": 0}), (PPSD, {})):
        console.print(f"{name}: starting the engine (a minute or two, most of it torch.compile) …")
        speculation = {"method": "ppsd", "model": str(exit_head.path)} | options
        runs[name] = _record(model, partition, speculation, prompt, tokens)
    trace_file, picture = output / "trace.json", output / "timeline.png"
    write_whole(trace_file, lambda path: path.write_text(json.dumps(events(runs))))
    draw(runs, picture)
    console.print(_table(runs))
    console.print(_lanes(runs[PPSD]))
    console.print(f"{trace_file} (open in ui.perfetto.dev or chrome://tracing), {picture}")
    return 0


def _table(runs: Mapping[str, Trace]) -> Table:
    """Return how every stage of every run spent its time."""
    table = Table("", "ms per token", "acceptance rate", "stage", "verified", "stale", "idle")
    for name, trace in runs.items():
        rate = "" if trace.acceptance is None else f"{trace.acceptance:.2f}"
        for stage, share in enumerate(trace.shares()):
            first = [name, f"{trace.ms_per_token():.1f}", rate] if stage == 0 else [""] * 3
            table.add_row(*first, str(stage), *(f"{part:.2f}" for part in share))
    return table


def _lanes(trace: Trace) -> Table:
    """Return how many lanes of each kind were sent, most frequent first."""
    table = Table("lanes sent", "begin with", "drafts", title="PPSD's lanes", title_justify="left")
    for (known, drafts), count in trace.lanes().most_common():
        first = "a known token" if known else "a draft, ahead of the verdict"
        table.add_row(str(count), first, str(drafts))
    return table


def _record(
    model: str, partition: list[int], speculation: dict[str, Any], prompt: str, tokens: int
) -> Trace:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    with engine(model, partition=partition, speculative_config=speculation) as llm:
        asked = {"prompt_token_ids": chat_tokens(llm.get_tokenizer(), prompt)}
        llm.generate([asked], sampling, use_tqdm=False)
        return record(llm, [asked], sampling)
