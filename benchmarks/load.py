"""A pipeline under load: ``vllm bench serve`` against PPSD's server and plain decoding's.

Both servers are up at once, on the same cores and with the same split of layers, and take
turns at every load: so many requests at once, or so many arriving a second. A ratio is
PPSD's figure over plain decoding's of the same turn. vLLM's benchmark reads prompts with pandas.

    python -m benchmarks.load MODEL --prompts FOLDER [--concurrency 1 2 4] [--rates 0.2 1]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vllm.benchmarks.serve import add_cli_args, main_async
from vllm.utils.argparse_utils import FlexibleArgumentParser

from benchmarks import arguments
from benchmarks.arguments import shared_cores
from benchmarks.servers import COMMON, Server, serving, split_of
from vllm_ppsd.config.cpu_binding import CORES
from vllm_ppsd.tools.engines import settle
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.prompts import first_of_each
from vllm_ppsd.tools.report import markdown_table, origin, portable_command, write_report

PLAIN, PPSD = "plain", "PPSD"
FIGURES = {
    "output_throughput": "tokens/s",
    "median_ttft_ms": "first token, p50 (ms)",
    "p99_ttft_ms": "p99",
    "median_tpot_ms": "per token, p50 (ms)",
    "p99_tpot_ms": "p99",
}


def main() -> None:
    """Run the benchmark and print its table."""
    parser = _parser()
    given = parser.parse_args()
    if find_spec("pandas") is None:
        parser.error("vLLM's benchmark reads prompts with pandas: pip install pandas")
    command = portable_command("python -m benchmarks.load", given.model)
    report = {"rows": _measure(given)} | origin(command)
    write_report(report, render(report["rows"]), given.json)


def render(rows: list[dict[str, Any]]) -> str:
    """Return the report as a Markdown table, a line per load and server."""
    lines = []
    for row in rows:
        for name in (PLAIN, PPSD):
            runs = row["runs"][name]
            figures = [f"{statistics.median(run[key] for run in runs):.1f}" for key in FIGURES]
            last = ["", ""]
            if name == PPSD:
                ratios = row["ratios"]
                last = [
                    f"{statistics.median(run['acceptance'] for run in runs):.2f}",
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                ]
            lines.append([row["load"], name, *figures, *last])
    ratio = "tokens/s, ratio to plain (median, range)"
    return markdown_table(["load", "server", *FIGURES.values(), "acceptance", ratio], lines)


def _measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    loads = [(f"{n} at once", ["--max-concurrency", str(n)], 3 * n) for n in given.concurrency]
    loads += [
        (f"{rate:g} a second", ["--request-rate", str(rate)], max(8, round(20 * rate)))
        for rate in given.rates
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder, _servers(given, Path(folder)) as servers:
        questions = _questions(given, Path(folder))
        for server in servers.values():
            _run(given, server, questions, [], 2)
        with progress("loads") as bar:
            for load, options, requests in bar.track(loads):
                runs: dict[str, list[dict[str, Any]]] = {PLAIN: [], PPSD: []}
                for _ in range(given.repeats):
                    for name, server in servers.items():
                        settle()
                        some = min(requests, given.most)
                        runs[name].append(_run(given, server, questions, options, some))
                ratios = [
                    ours["output_throughput"] / plain["output_throughput"]
                    for plain, ours in zip(runs[PLAIN], runs[PPSD], strict=True)
                ]
                rows.append({"load": load, "runs": runs, "ratios": ratios})
                print(render(rows[-1:]))
    return rows


@contextlib.contextmanager
def _servers(given: argparse.Namespace, folder: Path) -> Iterator[dict[str, Server]]:
    variables = split_of(given.head, given.model) | {CORES: shared_cores(2)}
    options = [
        *(*COMMON, "--pipeline-parallel-size", "2", "--max-num-seqs", "64"),
        *("--kv-cache-memory-bytes", str(2**30), "--dtype", given.dtype),
    ]
    with (
        serving(given.model, folder / "plain.log", *options, variables=variables) as plain,
        serving(
            given.model,
            folder / "ppsd.log",
            *(*options, "--speculative-model", given.head),
            variables=variables,
        ) as ppsd,
    ):
        yield {PLAIN: plain, PPSD: ppsd}
        if given.log:
            Path(given.log).write_bytes((folder / "ppsd.log").read_bytes())


def _questions(given: argparse.Namespace, folder: Path) -> Path:
    """Write the prompts as ``vllm bench serve`` reads them, one set after the other in turn."""
    file = folder / "questions.jsonl"
    with file.open("w") as lines:
        for prompt in first_of_each(given.prompts, given.limit):
            entry = {"prompt": prompt.text, "output_tokens": given.tokens}
            lines.write(json.dumps(entry) + "\n")
    return file


def _run(
    given: argparse.Namespace, server: Server, questions: Path, options: list[str], requests: int
) -> dict[str, Any]:
    """Let vLLM's own client load a server; return its figures."""
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    client = parser.parse_args(
        [
            *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
            *("--port", str(server.port), "--host", "127.0.0.1"),
            *("--model", "model", "--tokenizer", given.model),
            *("--dataset-name", "custom", "--dataset-path", str(questions)),
            *("--skip-chat-template", "--disable-tqdm", "--temperature", "0", "--ignore-eos"),
            *("--custom-output-len", str(given.tokens), "--num-prompts", str(requests)),
            *("--seed", "0", *options),
        ]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        result = asyncio.run(main_async(client))
    if result["completed"] < requests:
        raise RuntimeError(f"{requests - result['completed']} of {requests} requests failed")
    acceptance = result.get("spec_decode_acceptance_rate")
    return {key: result[key] for key in FIGURES} | {
        "acceptance": None if acceptance is None else acceptance / 100
    }


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    arguments.add_model(parser)
    arguments.add_prompts(parser, limit=None, tokens=64)
    parser.add_argument(
        "--concurrency", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32], help="at once"
    )
    parser.add_argument(
        "--rates", type=float, nargs="*", default=[0.2, 1.0], help="requests a second"
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of each server per load")
    parser.add_argument("--most", type=int, default=64, help="requests of a turn, at most")
    parser.add_argument("--dtype", default="auto", help="of both servers")
    parser.add_argument("--log", help="keep what PPSD's server printed in this file")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    main()
