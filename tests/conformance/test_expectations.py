"""Reading what is expected of vLLM's tests, and comparing it with what came about."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.expectations import ELSEWHERE, Expectations, ExpectationsError

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


def read(folder: Path, content: str) -> Expectations:
    (folder / "expectations.toml").write_text(content)
    return Expectations.read(folder / "expectations.toml")


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


def test_the_file_that_ships() -> None:
    assert len(Expectations.read().files) == 2
