"""Which ways of drafting are compared, and their table."""

from __future__ import annotations

from pathlib import Path

from support.heads import write_lens

from benchmarks.drafting import ARGMAX, COUPLED, WAYS, render, variants


def test_every_head_drafts_in_the_ways_that_apply_to_it(tiny_llama: Path, tmp_path: Path):
    reading = tmp_path / "reading"
    write_lens(tiny_llama, reading, [6])
    own = tiny_llama / "ppsd"
    configs = variants([str(own), str(reading)], str(tiny_llama), WAYS)
    assert list(configs) == [
        "ppsd",
        "ppsd, argmax",
        "reading",
    ]
    few = variants([str(own), str(reading)], str(tiny_llama), [COUPLED])
    assert few == {
        "ppsd": {"method": "ppsd", "model": str(own)},
        "reading": {"method": "ppsd", "model": str(reading)},
    }
    assert list(variants([str(own)], str(tiny_llama), [ARGMAX])) == ["ppsd, argmax"]


def test_rows_of_other_texts_say_so_by_leaving_identical_empty():
    row = {"temperature": 1.0, "drafts": 4, "hits": 3, "times_ms": [8.0, 10.0]}
    row |= {"speedups": [1.0, 1.5]}
    table = render([row | {"name": "a", "identical": 2}, row | {"name": "b", "identical": None}])
    first, second = table.splitlines()[2:]
    assert first == "| a | 1 | 0.75 of 4 | 9.0 | 1.25 (1.12 to 1.38) | 2 of 2 |"
    assert second.endswith("|  |")
