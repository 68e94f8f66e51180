"""Which of several shipped heads a pipeline gets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.heads import write_lens

from vllm_ppsd.exit_head import lookup


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model without a head of its own, for which three ship."""
    bare = tmp_path / "bare"
    shutil.copytree(tiny_llama, bare, ignore=shutil.ignore_patterns("ppsd"))
    for name, deeper_layers in (("a-three", [5, 6]), ("b-two", [6]), ("c-any", [])):
        write_lens(bare, tmp_path / "shipped" / name, deeper_layers)
    monkeypatch.setattr(lookup, "SHIPPED", tmp_path / "shipped")
    monkeypatch.delenv(lookup.HEAD_VARIABLE, raising=False)
    return bare


@pytest.mark.parametrize(
    ("stages", "name"), [(1, "c-any"), (2, "b-two"), (3, "a-three"), (4, "c-any")]
)
def test_a_head_made_for_the_pipeline_comes_first(model: Path, stages: int, name: str):
    assert lookup.find(None, str(model), stages=stages).path.name == name


def test_another_pipelines_head_is_better_than_none(model: Path):
    shutil.rmtree(lookup.SHIPPED / "c-any")
    assert lookup.find(None, str(model), stages=1).config.deeper_layers
