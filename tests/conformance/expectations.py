"""What is expected of each of vLLM's scheduler tests, and whether it came about.

``expectations.toml`` names every test of vLLM 0.32, without parameters where they all
agree. A test must pass, or a reason says why it cannot apply to PPSD's scheduler; a test
that passes in spite of its reason is as wrong as one that fails. Of a later series,
``expectations-0.33.toml`` names the tests that are new, gone, or expected to do otherwise.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("expectations.toml")
PASSES = {"plain": 0, "drafts": 1}
"""The passes and their ``max_drafts``: plain decoding, and positions sent ahead."""

MUST_PASS = "must pass"
GONE = "gone"
"""In the file of a later series: a test that this series no longer has."""

PASSED = "passed"
ELSEWHERE = "passed without PPSD's scheduler"


class ExpectationsError(ValueError):
    """The expectations cannot be understood."""


@dataclass(frozen=True)
class Expectations:
    """What the tests are expected to do.

    Attributes:
        files: vLLM's test files, by their paths in its source distribution.
        reasons: why tests cannot apply, by the name that the tests give the reason.
        tests: for every test, by its pytest id, one of ``MUST_PASS`` and the names of
            reasons for each pass.
    """

    files: tuple[str, ...]
    reasons: Mapping[str, str]
    tests: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(cls, files: Iterable[Path]) -> Expectations:
        """Read a file of expectations, and lay files of what differs over it.

        Raises:
            ExpectationsError: an entry is no expectation, or says what is so without it.
        """
        tests: dict[str, Mapping[str, str]] = {}
        reasons: dict[str, str] = {}
        paths: dict[str, None] = {}
        for file in files:
            content = tomllib.loads(file.read_text())
            given = content.pop("reasons", {})
            own = {
                f"{path}::{name}": value
                for path, entries in content.items()
                for name, value in entries.items()
            }
            gone = {test for test, value in own.items() if value == GONE}
            changed = {
                test: dict.fromkeys(PASSES, value) if isinstance(value, str) else value
                for test, value in own.items()
                if test not in gone
            }
            _check(file, changed, gone, tests)
            _check_reasons(file, changed, given, reasons)
            reasons |= given
            paths |= dict.fromkeys(content)
            tests = {test: tests[test] for test in tests.keys() - gone} | changed
        return cls(files=tuple(paths), reasons=reasons, tests=tests)

    def entry(self, test: str) -> str | None:
        """Return the entry for a test: its own, its function's, or None."""
        return next((e for e in (test, test.partition("[")[0]) if e in self.tests), None)

    def problems(self, outcomes: Mapping[str, str], at: str) -> list[str]:
        """Say what is not as expected in the pass ``at``, one line each."""
        found = []
        for test, outcome in outcomes.items():
            entry = self.entry(test)
            if entry is None:
                found.append(f"{test}: {outcome}, but is not in the expectations")
                continue
            expected = self.tests[entry][at]
            if expected == MUST_PASS and outcome != PASSED:
                found.append(f"{test}: {outcome}, but must pass")
            elif expected != MUST_PASS and outcome == PASSED:
                found.append(f"{test}: passed, but was not to: {self.reasons[expected]}")
        unseen = set(self.tests) - {self.entry(test) for test in outcomes}
        found += [f"{entry}: in the expectations, but there is no such test" for entry in unseen]
        return sorted(found)

    def split(self, outcomes: Mapping[str, str], at: str) -> tuple[int, int]:
        """Return how many of the tests must pass in the pass ``at``, and how many cannot."""
        entries = [entry for test in outcomes if (entry := self.entry(test)) is not None]
        must = sum(self.tests[entry][at] == MUST_PASS for entry in entries)
        return must, len(entries) - must


def files_for(version: str) -> list[Path]:
    """Return the files for a vLLM version such as "0.33.0": that of 0.32, and its series' own."""
    series = ".".join(version.split(".")[:2])
    own = FILE.with_name(f"{FILE.stem}-{series}{FILE.suffix}")
    return [FILE, own] if own.is_file() else [FILE]


def _check(
    file: Path,
    changed: Mapping[str, Mapping[str, str]],
    gone: Iterable[str],
    before: Mapping[str, Mapping[str, str]],
) -> None:
    """Refuse entries that are not for every pass, and those that change nothing."""
    halves = sorted(test for test, entry in changed.items() if set(entry) != set(PASSES))
    if halves:
        raise ExpectationsError(f"{file}: not for every pass: {', '.join(halves)}")
    idle = [test for test, entry in changed.items() if before.get(test) == entry]
    idle += [test for test in gone if test not in before]
    if idle:
        raise ExpectationsError(f"{file}: so without this entry: {', '.join(sorted(idle))}")


def _check_reasons(
    file: Path,
    changed: Mapping[str, Mapping[str, str]],
    given: Mapping[str, str],
    before: Mapping[str, str],
) -> None:
    """Refuse reasons that are not given, given again, or not used."""
    used = {value for entry in changed.values() for value in entry.values()} - {MUST_PASS}
    odd = (used - given.keys() - before.keys()) | (given.keys() & before.keys())
    odd |= given.keys() - used
    if odd:
        names = ", ".join(sorted(odd))
        raise ExpectationsError(f"{file}: reasons not given, given again or not used: {names}")
