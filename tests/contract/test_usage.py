"""The table holds what is used of vLLM, all of it and nothing else."""

from __future__ import annotations

import pytest

from vllm_ppsd.contract.entries import Entry
from vllm_ppsd.contract.series import contract_for, installed_vllm

from .usage import imported_functions, overrides, own_fields, received_fields, resolve, words

ENTRIES = contract_for(installed_vllm()[1]).entries
TARGETS = {entry.target for entry in ENTRIES}


def test_every_override_is_in_the_table_and_no_other():
    listed = {
        (entry.ours, entry.target): entry.platform for entry in ENTRIES if entry.kind == "override"
    }
    assert listed == overrides()


def test_what_subclasses_use_of_their_bases_is_in_the_table():
    assert [sorted(names) for names in own_fields() if not names & TARGETS] == []


def test_what_is_used_of_objects_of_vllm_is_in_the_table():
    for (package, receiver), used in received_fields().items():
        assert used, f"{package}: nothing is called {receiver} any more"
        assert used <= TARGETS, f"{package}: {receiver}"


def test_functions_that_are_imported_are_in_the_table():
    assert sorted(imported_functions() - TARGETS) == []


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if e.kind in ("call", "field")], ids=lambda e: e.name
)
def test_calls_and_fields_are_used_where_the_table_says(entry: Entry):
    assert entry.name.rpartition(".")[2] in words(entry.ours)


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if e.kind in ("hook", "meaning")], ids=lambda e: e.name
)
def test_what_relies_on_it_is_there(entry: Entry):
    resolve(entry.ours)


def test_nothing_is_listed_twice():
    assert len({(e.kind, e.ours, e.target, e.platform) for e in ENTRIES}) == len(ENTRIES)
