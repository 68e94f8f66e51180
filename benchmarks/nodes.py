"""Two nodes over a slow link: a stage on each, plain decoding and PPSD at several depths.

Every server has its first stage at one end of a link and its second at the other
(``benchmarks.slow_link``; needs root), each on a core of its own. All servers are up at
once and take turns on every prompt, at every delay.

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
from tqdm import tqdm

from benchmarks import arguments
from benchmarks.servers import COMMON, Server, serving_two_nodes, split_of
from benchmarks.slow_link import SlowLink
from vllm_ppsd.bench import engines
from vllm_ppsd.bench.origin import deliver, footer, origin
from vllm_ppsd.bench.prompts import first_of_each

PLAIN = "plain"


def main() -> None:
    """Run the benchmark and print its table."""
    given = _parser().parse_args()
    report = {"rows": _measure(given)} | origin(
        f"python -m benchmarks.nodes MODEL --prompts {given.prompts.name} --limit {given.limit} "
        f"--tokens {given.tokens}"
    )
    deliver(report, f"{render(report['rows'])}\n\n{footer(report)}", given.json)


def render(rows: list[dict[str, Any]]) -> str:
    """Return the report as a Markdown table, a line per delay."""
    names = list(rows[0]["ms"])
    lines = [
        "| delay, each way (ms) | "
        + " | ".join([f"{PLAIN}: ms per token"] + [f"{name}: speedup" for name in names[1:]])
        + " | identical |",
        "| --- " * (len(names) + 2) + "|",
    ]
    for row in rows:
        cells = [f"{row['delay_ms']:g}", f"{statistics.median(row['ms'][PLAIN]):.1f}"]
        for name in names[1:]:
            ratios = [a / b for a, b in zip(row["ms"][PLAIN], row["ms"][name], strict=True)]
            cells.append(
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )
        lines.append("| " + " | ".join([*cells, row["identical"]]) + " |")
    return "\n".join(lines)


def _measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    asked = [prompt.text for prompt in first_of_each(given.prompts, given.limit)]
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        SlowLink() as link,
        link.inside(0),
        _all_servers(given, Path(folder), link) as servers,
    ):
        for server in servers.values():
            _answer(server, asked[0], 8)
        for delay in tqdm(given.delays, desc="delays"):
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
            engines.settle(0.5)
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
    """Servers by name: plain decoding with PPSD's split, and PPSD at every depth."""
    split = split_of(given.head, given.model)
    common = [*COMMON, "--max-num-seqs", "16", "--kv-cache-memory-bytes", str(2**29)]
    kinds: dict[str, list[str]] = {PLAIN: []}
    for depth in given.depths:
        speculation = ["--speculative-model", given.head, "--spec-tokens", str(depth)]
        kinds[f"PPSD, {depth} in flight"] = speculation
    with contextlib.ExitStack() as stack:
        servers = {}
        for number, (name, options) in enumerate(kinds.items()):
            servers[name] = stack.enter_context(
                serving_two_nodes(
                    given.model,
                    folder / f"{number}.log",
                    link,
                    *(*common, *options),
                    cores=given.cores.split(","),
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
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 4], help="drafts in flight")
    return parser


if __name__ == "__main__":
    main()
