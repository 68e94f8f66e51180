"""``vllm-ppsd bench``: one request at a time by every way of decoding, in turns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby, product
from pathlib import Path
from typing import Any

from vllm_ppsd.bench import contenders
from vllm_ppsd.bench.contenders import Setting
from vllm_ppsd.bench.methods import Method
from vllm_ppsd.bench.report import draw, render, rows
from vllm_ppsd.bench.runs import Round, Runs
from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.exit_head.lookup import find
from vllm_ppsd.files import write_whole
from vllm_ppsd.tools.engines import rotated, settle
from vllm_ppsd.tools.progress import progress
from vllm_ppsd.tools.prompts import chat_tokens, first_of_each
from vllm_ppsd.tools.report import origin


def run(
    model: str,
    head: str | None,
    *,
    prompts: Path,
    limit: int,
    tokens: int,
    temperatures: Sequence[float],
    repeats: int,
    methods: Sequence[Method],
    output: Path,
    command: str,
) -> int:
    """Measure, and write ``runs.jsonl``, ``bench.json``, ``bench.md`` and ``bench.png``.

    Args:
        model: the target.
        head: its exit head; None for the one that ships.
        prompts: a JSONL file or a folder of them, a prompt set each.
        limit: prompts of each set.
        tokens: output tokens per prompt.
        temperatures: of sampling.
        repeats: how often each prompt is asked; everything is started anew for each time, in
            turns forwards and backwards.
        methods: what takes turns; the plain pipeline always does.
        output: folder to write; runs that it holds are not run again.
        command: what was called, for the report.

    Raises:
        PPSDConfigError: a number is out of range, a prompt is too long, no head fits, a
            package is missing, or the folder holds runs of something else.
    """
    _check(limit, tokens, temperatures, repeats, methods)
    exit_head = find(head, model)
    compared = [method for method in Method if method == Method.PLAIN or method in methods]
    asked = first_of_each(prompts, limit)
    prompt_ids = _tokenized(model, [prompt.text for prompt in asked])
    setting = Setting(
        model,
        str(exit_head.path),
        tuple(exit_head.config.two_stages),
        max_model_len=_room(model, prompt_ids, tokens),
    )
    source = origin(command)
    shared = {
        "model": Path(model).name,
        "fingerprint": exit_head.config.target.fingerprint,
        "head": exit_head.path.name,
        "weights": exit_head.digest(),
        "partition": list(setting.partition),
        "prompts": [prompt.text for prompt in asked],
        "tokens": tokens,
        "methods": compared,
        "commit": source["commit"],
        "versions": source["versions"],
        "cpu": source["cpu"],
    }
    output.mkdir(parents=True, exist_ok=True)
    runs = Runs(output / "runs.jsonl", shared)
    order = [
        Round(temperature, repeat, prompt)
        for repeat, temperature, prompt in product(range(repeats), temperatures, range(len(asked)))
    ]
    missing = runs.missing(order)
    if missing:
        _measure(setting, compared, prompt_ids, tokens, missing, runs)
    report: dict[str, Any] = (shared | source) | {
        "repeats": repeats,
        "temperatures": list(temperatures),
        "labels": {method: method.label(setting.partition) for method in compared},
        "rows": rows(
            {one: runs.answers[one] for one in order}, [prompt.source for prompt in asked]
        ),
    }
    text = render(report)
    write_whole(output / "bench.json", lambda path: path.write_text(json.dumps(report, indent=2)))
    write_whole(output / "bench.md", lambda path: path.write_text(text + "\n"))
    draw(report, output / "bench.png")
    print(text)
    print(f"\n{output}/bench.json, bench.md, bench.png")
    return 0


def _measure(
    setting: Setting,
    compared: Sequence[Method],
    prompts: Sequence[Sequence[int]],
    tokens: int,
    missing: Sequence[Round],
    runs: Runs,
) -> None:
    """Run the missing rounds.

    The same work takes a few percent longer in one process than in another, for as long as
    they live, so every repetition has processes of its own.
    """
    for repeat, rounds in groupby(missing, key=lambda one: one.repeat):
        print(f"starting {', '.join(compared)} (a minute or two each, most of it torch.compile) …")
        with (
            contenders.started(setting, compared, backwards=repeat % 2 == 1) as ways,
            progress("rounds") as bar,
        ):
            for answer in ways.values():
                answer(prompts[0], 8, 0.0, 0)
            for number, one in enumerate(bar.track(list(rounds))):
                answers = {}
                for name in rotated(list(ways), number):
                    settle(1.0)
                    answers[name] = ways[name](
                        prompts[one.prompt], tokens, one.temperature, one.repeat
                    )
                runs.add(one, {name: answers[name] for name in compared})


def _check(
    limit: int,
    tokens: int,
    temperatures: Sequence[float],
    repeats: int,
    methods: Sequence[Method],
) -> None:
    if limit < 1 or repeats < 1:
        raise PPSDConfigError(f"--limit {limit}, --repeats {repeats}: at least 1 each")
    if tokens < 8:
        raise PPSDConfigError(f"--tokens {tokens}: at least 8 are needed for a time per token")
    if min(temperatures) < 0:
        raise PPSDConfigError(f"--temperatures {min(temperatures):g}: at least 0")
    wanted = ["matplotlib"]
    if {Method.TRANSFORMERS, Method.EARLY_EXIT} & set(methods):
        wanted.append("accelerate")
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise PPSDConfigError(
            f"{' and '.join(missing)} must be installed for this: pip install 'vllm-ppsd[bench]'"
        )


def _tokenized(model: str, texts: Sequence[str]) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return [chat_tokens(tokenizer, text) for text in texts]


def _room(model: str, prompts: Sequence[Sequence[int]], tokens: int) -> int:
    """Return the context that the longest prompt and its answer need."""
    from transformers import AutoConfig

    context = AutoConfig.from_pretrained(model).max_position_embeddings
    needed = max(map(len, prompts)) + tokens
    if needed > context:
        raise PPSDConfigError(
            f"the longest prompt has {needed - tokens} tokens, which leaves no room for --tokens "
            f"{tokens} in the model's context of {context}"
        )
    return needed
