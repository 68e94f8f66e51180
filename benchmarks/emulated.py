"""Pipelines larger than the machine: real scheduler, workers and queues, stages that sleep.

A tiny random Llama with a layer a stage; every stage sleeps until its layers have taken
``--stage-ms``, and readers of vLLM's queues sleep instead of spinning (``patient_queues``),
so that many stages share few cores. Plain pipeline decoding and PPSD with the
synthetic drafter take turns; beside the measured speedup stand n / (alpha + n(1 - alpha)),
the cost model's with the times that traces of the same engines show, and what a tick
takes more than its slowest stage. Sleeping stages do not compete for memory or cores,
which real ones do. Every stage is a process in each of two engines: sizes that the free
memory or the limit on processes does not hold are left out, and named.

    python -m benchmarks.emulated [--stages 2 4 8] [--stage-ms 30]
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks import arguments, patient_queues
from vllm_ppsd.costs import ideal_speedup
from vllm_ppsd.drafter.recorded import write_record
from vllm_ppsd.planning.model import plain_pipeline, ppsd
from vllm_ppsd.planning.profile import derive
from vllm_ppsd.planning.times import Profile
from vllm_ppsd.tools.engines import Timed, engine, generate, settle
from vllm_ppsd.tools.report import markdown_table, origin, portable_command, write_report
from vllm_ppsd.trace.recording import record

ACCEPTANCES = (1.0, 0.8, 0.5, 0.0)
VOCABULARY = 512
PROMPT = list(range(5, 25))
PROCESS_GB, PROCESS_THREADS = 0.8, 40
"""What a worker or an engine's process takes: more than was seen (0.65 GB, 25 threads)."""


def main() -> None:
    """Run every pipeline size and print the table."""
    given = _parser().parse_args()
    with patient_queues.everywhere():
        rows = [row for stages in given.stages if _fits(stages) for row in _measure(stages, given)]
    report = {"rows": rows} | origin(portable_command("python -m benchmarks.emulated"))
    write_report(report, render(rows), given.json)


def _fits(stages: int) -> bool:
    """Whether two engines of so many stages fit this machine; says so if they do not."""
    processes = 2 * (stages + 1)
    memory = processes * PROCESS_GB
    free = psutil.virtual_memory().available / 2**30
    threads = processes * PROCESS_THREADS
    most, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    limit = math.inf if most == resource.RLIM_INFINITY else most
    if memory <= free and threads <= limit:
        return True
    print(
        f"{stages} stages left out: {processes} processes need about {memory:.0f} GB, of which "
        f"{free:.0f} are free, and {threads} threads, of which {limit:g} are allowed"
    )
    return False


def render(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = []
    for row in rows:
        low, high = min(row["ratios"]), max(row["ratios"])
        lines.append(
            [
                str(row["stages"]),
                f"{row['acceptance']:.2f}",
                f"{row['plain_ms']:.1f}",
                f"{row['ppsd_ms']:.1f}",
                f"{statistics.median(row['ratios']):.2f} ({low:.2f} to {high:.2f})",
                f"{row['ideal']:.2f}",
                f"{row['model']:.2f}",
                f"{row['overhead_ms']:.1f} ms" if row["acceptance"] == 1 else "",
                "yes" if row["identical"] else "no",
            ]
        )
    return markdown_table(
        [
            "stages",
            "acceptance",
            "plain, ms per token",
            "PPSD, ms per token",
            "speedup (range)",
            "ideal",
            "cost model",
            "a tick over its stage",
            "identical",
        ],
        lines,
    )


def _measure(stages: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    from vllm import SamplingParams

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model, recorded = folder / "model", folder / "record.jsonl"
        _write_model(model, stages)

        def start(speculation: dict[str, Any]) -> Any:
            llm: Any = stack.enter_context(
                engine(
                    str(model),
                    stages=stages,
                    cores=arguments.shared_cores(stages),
                    enforce_eager=True,
                    skip_tokenizer_init=True,
                    dtype="float32",
                    kv_cache_memory_bytes=2**26,
                    speculative_config={"method": "ppsd", "exit_layer": 1} | speculation,
                )
            )
            llm.collective_rpc(_sleep_in_layers, args=(given.stage_ms / 1000,))
            return llm

        plain = start({"num_speculative_tokens": 0})
        expected = generate(plain, PROMPT, given.tokens)
        write_record(recorded, [(expected.prompt, expected.tokens)])
        drafting = start({"synthetic_drafter": {"record": str(recorded), "acceptance": 0.5}})
        prompt: Any = {"prompt_token_ids": PROMPT}
        sampling = SamplingParams(temperature=0.0, max_tokens=given.tokens, ignore_eos=True)
        ours, theirs = ([record(llm, [prompt], sampling)] for llm in (drafting, plain))
        profile = derive("emulated", "emulated", [1] * stages, theirs, ours)
        rows = []
        for acceptance in ACCEPTANCES:
            drafting.collective_rpc("set_synthetic_acceptance", args=(acceptance,))
            pairs: list[tuple[Timed, Timed]] = []
            for _ in range(given.repeats):
                settle()
                base = generate(plain, PROMPT, given.tokens)
                settle()
                pairs.append((base, generate(drafting, PROMPT, given.tokens)))
            rows.append(_row(profile, pairs, expected.tokens, given.stage_ms))
            print(render(rows[-1:]))
        return rows


def _row(
    profile: Profile, pairs: Sequence[tuple[Timed, Timed]], expected: list[int], stage_ms: float
) -> dict[str, Any]:
    """Return what pairs of runs, plain and PPSD, say at one acceptance rate."""
    stages = profile.num_layers
    layout = [1] * stages
    drafting = [run for _, run in pairs]
    alpha = sum(run.hits for run in drafting) / sum(run.drafts for run in drafting)
    model_ms = ppsd(profile, layout, alpha, stages - 1).ms_per_token
    ppsd_ms = statistics.median(run.ms_per_token for run in drafting)
    return {
        "stages": stages,
        "acceptance": alpha,
        "plain_ms": statistics.median(run.ms_per_token for run, _ in pairs),
        "ppsd_ms": ppsd_ms,
        "ratios": [plain.ms_per_token / run.ms_per_token for plain, run in pairs],
        "ideal": ideal_speedup(stages, alpha),
        "model": plain_pipeline(profile, layout).ms_per_token / model_ms,
        "overhead_ms": ppsd_ms - stage_ms,
        "identical": all(run.tokens == expected for pair in pairs for run in pair),
        "profile": profile.model_dump(),
    }


def _write_model(folder: Path, layers: int) -> None:
    """Write a tiny Llama of random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        max_position_embeddings=2048,
        eos_token_id=2,
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _sleep_in_layers(worker: Any, seconds: float) -> None:
    """Let a worker's layers take ``seconds``; runs in the worker."""
    model = worker.model_runner.model
    inner = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        until = time.monotonic() + seconds
        output = inner(*args, **kwargs)
        time.sleep(max(0.0, until - time.monotonic()))
        return output

    model.forward = forward


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8], help="pipeline sizes")
    parser.add_argument("--stage-ms", type=float, default=30.0, help="what a stage's layers take")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--tokens", type=int, default=48, help="output tokens")
    return parser


if __name__ == "__main__":
    # A function goes to the workers, which vLLM must be told to accept.
    os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    main()
