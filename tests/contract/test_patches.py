"""The contract and ``patches/`` belong together: a diff a hook, and a row for all else."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from support.sources import patched

from vllm_ppsd.contract.entries import Entry
from vllm_ppsd.contract.series import contract_for, installed_vllm
from vllm_ppsd.contract.source import installed_source

PATCHES = Path(__file__).parents[2] / "patches"
CONTRACT = contract_for(installed_vllm()[1])


def test_hooks_and_diffs_are_one_to_one():
    assert sorted(h.name for h in CONTRACT.hooks) == sorted(p.stem for p in PATCHES.glob("*.diff"))


def test_the_readme_names_every_hook_and_its_target():
    text = (PATCHES / "README.md").read_text()
    for hook in CONTRACT.hooks:
        assert f"| `{hook.name}` | `{hook.target}` |" in text


def test_the_readme_has_a_row_for_everything_else():
    rows: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for entry in CONTRACT.entries:
        if entry.kind == "hook":
            continue
        separator = "." if "." in entry.name else ":"
        owner, _, member = entry.target.rpartition(separator)
        ours = entry.ours.removesuffix(f".{member}") if entry.kind == "override" else entry.ours
        rows[entry.kind, owner, ours].append(f"`{member}`")
    expected = [
        f"| {kind} | `{owner}` | {', '.join(members)} | `{ours}` |"
        for (kind, owner, ours), members in rows.items()
    ]
    lines = (PATCHES / "README.md").read_text().partition("without changing it\n")[2].splitlines()
    assert [line for line in lines if line.startswith("| ")][2:] == expected, "\n".join(expected)


@pytest.mark.parametrize("hook", CONTRACT.hooks, ids=lambda hook: hook.name)
def test_the_diff_applies_to_the_hooked_module(hook: Entry, tmp_path: Path):
    diff = PATCHES / f"{hook.name}.diff"
    relative = Path(*hook.target.partition(":")[0].split(".")).with_suffix(".py")
    assert f"+++ b/{relative}" in diff.read_text()
    before, after = patched(hook, diff, installed_source(), tmp_path)
    assert after != before
