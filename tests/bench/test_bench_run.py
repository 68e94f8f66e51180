"""``vllm-ppsd bench`` with made-up engines: what is run, resumed and refused."""

from __future__ import annotations

import json
from contextlib import contextmanager
from itertools import count

import pytest

from vllm_ppsd.bench import contenders, run
from vllm_ppsd.bench.methods import Method
from vllm_ppsd.bench.runs import Answer
from vllm_ppsd.cli.main import main


class Fake:
    """Answers at once; stops the measurement after ``left`` answers."""

    def __init__(self, method, left):
        self.method = method
        self.left = left
        self.answered = 0
        self.closed = False

    def __call__(self, prompt, tokens, temperature, seed):
        if next(self.left) == 0:
            raise KeyboardInterrupt
        self.answered += 1
        drafts = 10 if self.method == Method.PPSD else 0
        return Answer([7] * tokens, 20.0 if drafts else 30.0, drafts, drafts // 2)


@pytest.fixture
def asked(tmp_path, tiny_llama, monkeypatch):
    """A function that calls the command, with fakes that stop after so many answers."""
    prompts = tmp_path / "words.jsonl"
    prompts.write_text('{"prompt": "w5 w6 w7"}\n{"prompt": "w9 w5 w6"}\n')
    monkeypatch.setattr(run, "settle", lambda seconds: None)
    started, orders = [], []

    def call(*words, stop_after=1000):
        left = count(stop_after, -1)

        @contextmanager
        def starting(setting, methods, *, backwards):
            orders.append(backwards)
            fakes = {method: Fake(method, left) for method in methods}
            started.append(fakes)
            try:
                yield fakes
            finally:
                for fake in fakes.values():
                    fake.closed = True

        monkeypatch.setattr(contenders, "started", starting)
        given = ["bench", str(tiny_llama), "--prompts", str(prompts), "--tokens", "8"]
        output = tmp_path / "out"
        return main([*given, "-o", str(output), *words]), started, orders, output

    return call


def test_a_stopped_measurement_goes_on(asked, capsys):
    # Two answers to warm up, then three rounds of two and a half one; eight are asked for, four
    # of each repetition.
    with pytest.raises(KeyboardInterrupt):
        asked("--methods", "ppsd", stop_after=2 + 7)
    status, started, orders, output = asked("--methods", "ppsd")
    assert status == 0
    assert [list(fakes) for fakes in started] == [[Method.PLAIN, Method.PPSD]] * 3
    assert orders == [False, False, True], "the second repetition is started backwards"
    assert all(fake.closed for fakes in started for fake in fakes.values())
    assert [fake.answered for fake in started[0].values()] == [1 + 3, 1 + 4], "ppsd's turn first"
    assert [fake.answered for fake in started[1].values()] == [1 + 1, 1 + 1]
    assert [fake.answered for fake in started[2].values()] == [1 + 4, 1 + 4]
    lines = (output / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 8
    report = json.loads((output / "bench.json").read_text())
    ours = [row for row in report["rows"] if row["name"] == "ppsd"]
    assert [row["runs"] for row in ours] == [4, 4]
    assert [row["speedup"] for row in ours] == [1.5, 1.5]
    assert [row["acceptance"] for row in ours] == [0.5, 0.5]
    assert "1.50 (1.50 to 1.50)" in (output / "bench.md").read_text()
    assert (output / "bench.png").exists()
    assert asked("--methods", "ppsd")[0] == 0
    assert len(started) == 3, "nothing is started where nothing is left to run"


def test_another_measurement_does_not_go_into_the_same_folder(asked, capsys):
    assert asked()[0] == 0
    assert asked("--tokens", "9")[0] == 2
    assert "tokens: 8 there, 9 now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "0"], "--limit 0"),
        (["--repeats", "0"], "--repeats 0"),
        (["--tokens", "7"], "--tokens 7: at least 8"),
        (["--tokens", "600"], "no room for --tokens 600 in the model's context of 512"),
        (["--temperatures", "-1"], "--temperatures -1"),
        (["--prompts", "nowhere"], "nowhere is no prompt file"),
        (["--head", "nowhere"], "the exit head nowhere does not exist"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(asked, capsys, words, said):
    status, started, *_ = asked(*words)
    assert (status, started) == (2, [])
    assert said in capsys.readouterr().err
