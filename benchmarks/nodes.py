"""Two nodes over a slow link: a stage on each, plain decoding and PPSD.

Every server has its first stage at one end of a link and its second at the other
(``benchmarks.slow_link``; needs root), each on a core of its own. All servers are up at
once and take turns on every prompt, at every delay. ``--depths`` adds servers in exact mode, with
so many drafts in flight.

    python -m benchmarks.nodes MODEL --prompts FOLDER [--delays 0 2 10 50] [--depths 1 2 4]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks import arguments
from benchmarks.servers import COMMON, Server, serving_two_nodes, split_of
from benchmarks.slow_link import SlowLink
from vllm_ppsd.tools.engines import settle
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.prompts import first_of_each
from vllm_ppsd.tools.report import markdown_table, origin, portable_command, write_report

PLAIN = "plain"


def main() -> None:
    """Run the benchmark and print its table."""
    given = _parser().parse_args()
    command = portable_command("python -m benchmarks.nodes", given.model)
    report = {"rows": _measure(given)} | origin(command)
    write_report(report, render(report["rows"]), given.json)


def render(rows: list[dict[str, Any]]) -> str:
    """Return the report as a Markdown table, a line per delay."""
    names = list(rows[0]["ms"])
    lines = []
    for row in rows:
        cells = [f"{row['delay_ms']:g}", f"{statistics.median(row['ms'][PLAIN]):.1f}"]
        for name in names[1:]:
            ratios = [a / b for a, b in zip(row["ms"][PLAIN], row["ms"][name], strict=True)]
            low, high = min(ratios), max(ratios)
            cells.append(f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})")
        lines.append([*cells, row["identical"]])
    speedups = [f"{name}: speedup" for name in names[1:]]
    headings = ["delay, each way (ms)", f"{PLAIN}: ms per token", *speedups, "identical"]
    return markdown_table(headings, lines)


def _measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    asked = [prompt.text for prompt in first_of_each(given.prompts, given.limit)]
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        SlowLink() as link,
        link.inside(0),
        _all_servers(given, Path(folder), link) as servers,
        progress("delays") as bar,
    ):
        for server in servers.values():
            _answer(server, asked[0], 8)
        for delay in bar.track(given.delays):
            link.set_delay(delay / 1000)
            rows.append({"delay_ms": delay} | _turns(given, servers, asked))
    return rows


def _turns(
    given: argparse.Namespace, servers: dict[str, Server], asked: Sequence[str]
) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in servers}
    identical = runs = 0
    for text in asked:
        texts = {}
        for name, server in servers.items():
            settle(0.5)
            texts[name], milliseconds = _answer(server, text, given.tokens)
            times[name].append(milliseconds)
        identical += sum(texts[name] == texts[PLAIN] for name in servers if name != PLAIN)
        runs += len(servers) - 1
    return {"ms": times, "identical": f"{identical} of {runs}"}


def _answer(server: Server, text: str, tokens: int) -> tuple[str, float]:
    """Return the answer, and the milliseconds per token behind the first."""
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
    }
    answer = ""
    first = last = 0.0
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=300) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            last = time.perf_counter()
            content = json.loads(line[6:])["choices"][0]["delta"].get("content")
            if content:
                first = first or last
                answer += content
    return answer, 1000 * (last - first) / (tokens - 1)


@contextlib.contextmanager
def _all_servers(
    given: argparse.Namespace, folder: Path, link: SlowLink
) -> Iterator[dict[str, Server]]:
    """Servers by name: plain decoding with PPSD's split, PPSD, and exact PPSD at every depth."""
    split = split_of(given.head, given.model)
    common = [*COMMON, "--max-num-seqs", "16", "--kv-cache-memory-bytes", str(2**29)]
    kinds: dict[str, list[str]] = {PLAIN: [], "PPSD": ["--speculative-model", given.head]}
    for depth in given.depths:
        exact = {
            "method": "ppsd",
            "model": given.head,
            "num_speculative_tokens": depth,
            "exact": True,
        }
        kinds[f"exact, {depth} in flight"] = ["--speculative-config", json.dumps(exact)]
    with contextlib.ExitStack() as stack:
        servers = {}
        for number, (name, options) in enumerate(kinds.items()):
            servers[name] = stack.enter_context(
                serving_two_nodes(
                    given.model,
                    folder / f"{number}.log",
                    link,
                    *(*common, *options),
                    cores=arguments.shared_cores(2).split("|"),
                    variables=split,
                )
            )
        yield servers


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    arguments.add_model(parser)
    arguments.add_prompts(parser, limit=2, tokens=64)
    parser.add_argument(
        "--delays", type=float, nargs="+", default=[0, 2, 10, 50], help="milliseconds, each way"
    )
    parser.add_argument("--depths", type=int, nargs="*", default=[], help="drafts in flight")
    return parser


if __name__ == "__main__":
    main()
