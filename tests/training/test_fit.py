"""Fitting a head to states that can be learned, killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.states import write_states
from support.tiny import make_tiny_model

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.exit_head.create import describe_target, head_config
from vllm_ppsd.training.build import read_lm_head, untrained
from vllm_ppsd.training.dataset import StateSet
from vllm_ppsd.training.fit import LAST, LOG, Fit
from vllm_ppsd.training.recipe import Optimisation

SETTINGS = Optimisation(
    epochs=4, batch_tokens=64, validation_documents=4, validate_every=8, precision="fp32"
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(make_tiny_model(tmp_path / "tiny"))


@pytest.fixture
def states(model: str, tmp_path: Path) -> StateSet:
    write_states(tmp_path / "states", [(4, 12)] * 40, exit_layer=3, lm_head=read_lm_head(model))
    return StateSet(tmp_path / "states", 3)


def new_run(model: str, states: StateSet, folder: Path, **changes: object) -> Fit:
    torch.manual_seed(0)
    config = head_config(describe_target(Path(model)), exit_layer=3, head_type="transformer")
    head, vocabulary = untrained(model, config, None)
    settings = SETTINGS.model_copy(update=changes)
    return Fit(head, states, vocabulary, settings, folder, Accelerator(cpu=True))


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [line["validation"]["loss"] for line in lines if "validation" in line]


def test_the_loss_falls(model: str, states: StateSet, tmp_path: Path):
    new_run(model, states, tmp_path / "run").run()
    seen = losses(tmp_path / "run")
    assert seen[-1] < seen[0]


def test_a_killed_run_goes_on_and_ends_the_same(model: str, states: StateSet, tmp_path: Path):
    whole = new_run(model, states, tmp_path / "whole").run()
    killed = new_run(model, states, tmp_path / "killed")
    step, done = killed._step, []

    def stop_at_20(batch: object) -> None:
        if len(done) == 20:
            raise KeyboardInterrupt
        done.append(batch)
        step(batch)  # type: ignore[arg-type]

    killed._step = stop_at_20  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    with (tmp_path / "killed" / LOG).open("a") as log:
        log.write('{"step": 2')  # a line that was being written
    resumed = new_run(model, states, tmp_path / "killed").run()
    assert resumed == whole
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_a_damaged_checkpoint_is_named(model: str, states: StateSet, tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / LAST).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(TrainingError, match=r"last\.pt is damaged"):
        new_run(model, states, folder).run()


@pytest.mark.parametrize("coupled", [0.0, 1.0])
def test_what_is_kept_is_judged_by_what_is_trained_for(
    model: str, states: StateSet, tmp_path: Path, coupled: float
):
    kept = new_run(model, states, tmp_path, coupled_weight=coupled, kl_weight=0.1).run()
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    seen = [line["validation"] for line in lines if "validation" in line]
    assert len(seen) > 2
    if coupled:
        assert kept.loss == min(one["loss"] for one in seen)
    else:
        assert kept.acceptance == max(one["acceptance"] for one in seen)
