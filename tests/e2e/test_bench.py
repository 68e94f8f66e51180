"""``vllm-ppsd bench`` with real engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_ppsd.cli.main import main

pytestmark = [pytest.mark.e2e, pytest.mark.long]

METHODS = ("plain", "ppsd", "ngram", "transformers", "early-exit")


def test_every_method_answers(tiny_llama: Path, tmp_path: Path):
    prompts = tmp_path / "words.jsonl"
    prompts.write_text('{"prompt": "w5 w6 w7 w8"}\n{"prompt": "w9 w5 w6 w7 w8"}\n')
    output = tmp_path / "bench"
    words = ["bench", str(tiny_llama), "--prompts", str(prompts)]
    words += ["--tokens", "24", "--repeats", "1", "-o", str(output), "--methods", *METHODS]
    assert main(words) == 0
    report = json.loads((output / "bench.json").read_text())
    rows = {(row["temperature"], row["name"]): row for row in report["rows"]}
    assert len(rows) == 2 * len(METHODS)
    for temperature in (0.0, 1.0):
        ours = rows[temperature, "ppsd"]
        assert ours["runs"] == 2
        assert ours["acceptance"] > 0
    assert rows[0.0, "ppsd"]["identical"] == 2
    assert rows[1.0, "ppsd"]["acceptance"] < 1
    assert (output / "bench.png").stat().st_size > 10_000
    table = (output / "bench.md").read_text()
    assert "assistant_early_exit=3" in table
    # Coupled drafts draw with another noise than vLLM's sampler.
    assert table.count("other noise") == 1
