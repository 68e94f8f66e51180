"""Hooks and ``patches/`` belong together, and both fit the installed vLLM."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import vllm

from vllm_ppsd.hooks.hook import Hook, HookError
from vllm_ppsd.hooks.table import HOOKS, install_all, problems

PATCHES = Path(__file__).parents[2] / "patches"


def test_every_hook_fits_this_vllm():
    assert problems() == []


def test_hooks_and_diffs_are_one_to_one():
    assert sorted(h.name for h in HOOKS) == sorted(p.stem for p in PATCHES.glob("*.diff"))


def test_the_readme_names_every_hook_and_its_target():
    text = (PATCHES / "README.md").read_text()
    for hook in HOOKS:
        assert f"| `{hook.name}` | `{hook.target}` |" in text


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_the_diff_applies_to_the_hooked_module(hook: Hook, tmp_path: Path):
    diff = PATCHES / f"{hook.name}.diff"
    relative = Path(*hook.module.split(".")).with_suffix(".py")
    assert f"+++ b/{relative}" in diff.read_text()
    copy = tmp_path / relative
    copy.parent.mkdir(parents=True)
    shutil.copy(Path(vllm.__file__).parents[1] / relative, copy)
    before = copy.read_text()
    command = ["patch", "-p1", "--fuzz=0", "-i", str(diff)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert copy.read_text() != before
    compile(copy.read_text(), str(copy), "exec")


def test_installing_twice_changes_nothing():
    install_all()
    before = [hook._locate()[2] for hook in HOOKS]
    install_all()
    assert [hook._locate()[2] for hook in HOOKS] == before
    assert all(hook.installed() for hook in HOOKS)


def test_a_changed_source_is_a_problem_and_nothing_is_installed(monkeypatch):
    changed = Hook("x", "vllm.sampling_params", "SamplingParams.verify", "0" * 64, lambda f: f, "")
    gone = Hook("y", "vllm.sampling_params", "SamplingParams.gone", "0" * 64, lambda f: f, "")
    assert "sha256" in changed.problem()
    assert "not there" in gone.problem()
    monkeypatch.setattr("vllm_ppsd.hooks.table.HOOKS", (changed, gone))
    with pytest.raises(HookError, match=r"SamplingParams\.gone"):
        install_all()
    assert not changed.installed()
