"""Reading what is expected of vLLM's tests, and comparing it with what came about."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.expectations import (
    ELSEWHERE,
    FILE,
    MUST_PASS,
    Expectations,
    ExpectationsError,
    files_for,
)

CONTENT = """
[reasons]
slots = "It reserves slots."
ahead = "It sends ahead."

["tests/test_a.py"]
test_one = "must pass"
test_two = { plain = "ahead", drafts = "must pass" }
"test_three[x]" = "must pass"
"test_three[y]" = "slots"
"""
LATER = """
[reasons]
later = "It came later."

["tests/test_a.py"]
test_one = "ahead"
"test_three[y]" = "gone"
test_four = { plain = "later", drafts = "must pass" }
"""
AS_EXPECTED = {
    "tests/test_a.py::test_one[0-a]": "passed",
    "tests/test_a.py::test_one[1-b]": "passed",
    "tests/test_a.py::test_two": "failed",
    "tests/test_a.py::test_three[x]": "passed",
    "tests/test_a.py::test_three[y]": "skipped",
}


@pytest.fixture
def expectations(tmp_path: Path) -> Expectations:
    return read(tmp_path, CONTENT)


def read(folder: Path, *contents: str) -> Expectations:
    files = [folder / f"{number}.toml" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_text(content)
    return Expectations.read(files)


def test_as_expected(expectations: Expectations) -> None:
    assert expectations.files == ("tests/test_a.py",)
    assert expectations.problems(AS_EXPECTED, "plain") == []
    assert expectations.split(AS_EXPECTED, "plain") == (3, 2)
    assert expectations.split(AS_EXPECTED, "drafts") == (4, 1)


@pytest.mark.parametrize(
    ("test", "outcome", "problem"),
    [
        ("test_one[0-a]", "failed", "failed, but must pass"),
        ("test_one[0-a]", "skipped", "skipped, but must pass"),
        ("test_one[0-a]", ELSEWHERE, f"{ELSEWHERE}, but must pass"),
        ("test_two", "passed", "passed, but was not to: It sends ahead."),
        ("test_three[z]", "passed", "passed, but is not in the expectations"),
        ("test_four", "failed", "failed, but is not in the expectations"),
    ],
)
def test_one_is_not(expectations: Expectations, test: str, outcome: str, problem: str) -> None:
    name = f"tests/test_a.py::{test}"
    problems = expectations.problems(AS_EXPECTED | {name: outcome}, "plain")
    assert problems == [f"{name}: {problem}"]


def test_each_pass_has_its_own_expectation(expectations: Expectations) -> None:
    assert expectations.problems(AS_EXPECTED, "drafts") == [
        "tests/test_a.py::test_two: failed, but must pass"
    ]


def test_a_test_is_gone(expectations: Expectations) -> None:
    outcomes = {k: v for k, v in AS_EXPECTED.items() if not k.endswith("[y]")}
    assert expectations.problems(outcomes, "plain") == [
        "tests/test_a.py::test_three[y]: in the expectations, but there is no such test"
    ]


@pytest.mark.parametrize(
    ("content", "odd"),
    [
        (CONTENT.replace('test_one = "must pass"', 'test_one = "may pass"'), "may pass"),
        (CONTENT.replace('"test_three[y]" = "slots"', ""), "slots"),
        (CONTENT.replace(', drafts = "must pass"', ""), "test_two"),
    ],
)
def test_misspelt(tmp_path: Path, content: str, odd: str) -> None:
    with pytest.raises(ExpectationsError, match=odd):
        read(tmp_path, content)


def test_a_later_series(tmp_path: Path) -> None:
    later = read(tmp_path, CONTENT, LATER)
    assert later.files == ("tests/test_a.py",)
    assert {name.partition("::")[2]: entry["plain"] for name, entry in later.tests.items()} == {
        "test_one": "ahead",
        "test_two": "ahead",
        "test_three[x]": MUST_PASS,
        "test_four": "later",
    }
    assert later.reasons["slots"] and later.reasons["later"]


@pytest.mark.parametrize(
    ("content", "odd"),
    [
        (LATER.replace('test_one = "ahead"', 'test_one = "must pass"'), "test_one"),
        (LATER.replace("test_three[y]", "test_three[z]"), "test_three.z"),
        (LATER.replace('plain = "later"', 'plain = "ahead"'), "not used: later"),
        (LATER.replace("later =", "ahead =").replace('"later"', '"slots"'), "again.*: ahead"),
    ],
)
def test_a_later_series_says_only_what_differs(tmp_path: Path, content: str, odd: str) -> None:
    with pytest.raises(ExpectationsError, match=odd):
        read(tmp_path, CONTENT, content)


@pytest.mark.parametrize(("version", "files"), [("0.32.0", 1), ("0.33.0", 2), ("0.33.1", 2)])
def test_the_files_that_ship(version: str, files: int) -> None:
    given = files_for(version)
    assert given[0] == FILE
    assert len(given) == files
    assert len(Expectations.read(given).files) == 2
