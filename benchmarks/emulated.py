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
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from benchmarks import arguments, patient_queues, random_llama
from vllm_ppsd.bench import engines
from vllm_ppsd.bench.origin import deliver, footer, origin
from vllm_ppsd.planning.model import plain_pipeline, ppsd
from vllm_ppsd.planning.profile import derive
from vllm_ppsd.costs import ideal_speedup
from vllm_ppsd.trace.recording import record
from vllm_ppsd.drafter.recorded import write_record

ACCEPTANCES = (1.0, 0.8, 0.5, 0.0)
VOCABULARY = 512
PROMPT = list(range(5, 25))
PROCESS_GB, PROCESS_THREADS = 0.8, 40
"""What a worker or an engine's process takes: more than was seen (0.65 GB, 25 threads)."""


def main() -> None:
    """Run every pipeline size and print the table."""
    given = _parser().parse_args()
    fitting = [stages for stages in given.stages if _fits(stages)]
    sizes = tqdm(fitting, desc="pipeline sizes")
    with patient_queues.everywhere():
        rows = [row for stages in sizes for row in _measure(stages, given)]
    report = {"rows": rows} | origin(
        f"python -m benchmarks.emulated --stages {' '.join(map(str, given.stages))} "
        f"--stage-ms {given.stage_ms:g} --repeats {given.repeats} --tokens {given.tokens}"
    )
    deliver(report, f"{render(rows)}\n\n{footer(report)}", given.json)


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
    tqdm.write(
        f"{stages} stages left out: {processes} processes need about {memory:.0f} GB, of which "
        f"{free:.0f} are free, and {threads} threads, of which {limit:g} are allowed"
    )
    return False


def render(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| stages | acceptance | plain, ms per token | PPSD, ms per token | speedup (range) "
        "| ideal | cost model | a tick over its stage | identical |",
        "| " + "--- | " * 9,
    ]
    for row in rows:
        low, high = min(row["ratios"]), max(row["ratios"])
        over = f"{row['overhead_ms']:.1f} ms" if row["acceptance"] == 1 else ""
        lines.append(
            f"| {row['stages']} | {row['acceptance']:.2f} | {row['plain_ms']:.1f} "
            f"| {row['ppsd_ms']:.1f} | {statistics.median(row['ratios']):.2f} ({low:.2f} to "
            f"{high:.2f}) | {row['ideal']:.2f} | {row['model']:.2f} | {over} "
            f"| {'yes' if row['identical'] else 'no'} |"
        )
    return "\n".join(lines)


def _measure(stages: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    from vllm import SamplingParams

    seconds = given.stage_ms / 1000
    own = given.cores.split(",")
    cores = "|".join(own[i % len(own)] for i in range(stages))
    with tempfile.TemporaryDirectory() as folder:
        model, recorded = Path(folder) / "model", Path(folder) / "record.jsonl"
        random_llama.write(
            model,
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=stages,
            num_attention_heads=2,
            num_key_value_heads=2,
        )

        def start(speculation: dict[str, Any]) -> Any:
            llm = engines.start(
                str(model),
                stages=stages,
                cores=cores,
                enforce_eager=True,
                skip_tokenizer_init=True,
                dtype="float32",
                kv_cache_memory_bytes=2**26,
                speculative_config={"method": "ppsd", "exit_layer": 1} | speculation,
            )
            llm.collective_rpc(_sleep_in_layers, args=(seconds,))
            return llm

        plain = start({"num_speculative_tokens": 0})
        expected = engines.generate(plain, PROMPT, given.tokens)
        write_record(recorded, [(expected.prompt, expected.tokens)])
        drafting = start({"synthetic_drafter": {"record": str(recorded), "acceptance": 0.5}})
        prompt: Any = {"prompt_token_ids": PROMPT}
        sampling = SamplingParams(temperature=0.0, max_tokens=given.tokens, ignore_eos=True)
        ours, theirs = ([record(llm, [prompt], sampling)] for llm in (drafting, plain))
        profile = derive("emulated", "emulated", [1] * stages, theirs, ours)
        rows = []
        for acceptance in ACCEPTANCES:
            drafting.collective_rpc("set_synthetic_acceptance", args=(acceptance,))
            runs = []
            before = engines.draft_counts(drafting)
            for _ in range(given.repeats):
                pair = []
                for llm in (plain, drafting):
                    engines.settle()
                    pair.append(engines.generate(llm, PROMPT, given.tokens))
                runs.append(pair)
            after = engines.draft_counts(drafting)
            alpha = (after[1] - before[1]) / (after[0] - before[0])
            layout = [1] * stages
            base = plain_pipeline(profile, layout).ms_per_token
            times = [[run.ms_per_token for run in pair] for pair in runs]
            ppsd_ms = statistics.median(ours for _, ours in times)
            rows.append(
                {
                    "stages": stages,
                    "acceptance": alpha,
                    "plain_ms": statistics.median(theirs for theirs, _ in times),
                    "ppsd_ms": ppsd_ms,
                    "ratios": [theirs / ours for theirs, ours in times],
                    "ideal": ideal_speedup(stages, alpha),
                    "model": base / ppsd(profile, layout, alpha, stages - 1).ms_per_token,
                    "overhead_ms": ppsd_ms - given.stage_ms,
                    "identical": all(
                        run.tokens == expected.tokens for pair in runs for run in pair
                    ),
                    "profile": profile.model_dump(),
                }
            )
            tqdm.write(render(rows[-1:]))
        for llm in (plain, drafting):
            engines.stop(llm)
        return rows


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
