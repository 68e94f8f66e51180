"""Shards: whole or absent, and bound to their settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.training import shards as module
from vllm_ppsd.training.shards import Shards, require_space


def test_a_killed_write_leaves_no_shard(tmp_path: Path):
    shards = Shards(tmp_path, ".jsonl", {})

    def die(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(0, die)
    assert not shards.path(0).exists()
    shards.write(0, lambda path: path.write_text("whole"))
    assert [path.read_text() for path in tmp_path.glob("*.jsonl")] == ["whole"]


def test_other_settings_are_refused_by_name(tmp_path: Path):
    Shards(tmp_path, ".jsonl", {"model": "a", "seed": 0})
    Shards(tmp_path, ".jsonl", {"model": "a", "seed": 0})
    with pytest.raises(TrainingError, match="made with model = 'a', but now it is 'b'"):
        Shards(tmp_path, ".jsonl", {"model": "b", "seed": 0})


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = module.shutil._ntuple_diskusage(10, 9, 1)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    require_space(tmp_path, 1, "the cache")
    with pytest.raises(TrainingError, match="the cache needs about"):
        require_space(tmp_path, 2, "the cache")
