"""What is expected of each of vLLM's scheduler tests, and whether it came about.

``expectations.toml`` names every test, without parameters where they all agree.
A test must pass, or a reason says why it cannot apply to PPSD's scheduler; a test
that passes in spite of its reason is as wrong as one that fails.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("expectations.toml")
PASSES = {"plain": 0, "drafts": 1}
"""The passes and their ``max_drafts``: plain decoding, and positions sent ahead."""

MUST_PASS = "must pass"
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
    def read(cls, file: Path = FILE) -> Expectations:
        """Read a file of expectations.

        Raises:
            ExpectationsError: an entry is no expectation, or a reason is not used.
        """
        content = tomllib.loads(file.read_text())
        reasons = content.pop("reasons", {})
        tests = {
            f"{path}::{name}": dict.fromkeys(PASSES, value) if isinstance(value, str) else value
            for path, entries in content.items()
            for name, value in entries.items()
        }
        halves = sorted(test for test, entry in tests.items() if set(entry) != set(PASSES))
        if halves:
            raise ExpectationsError(f"{file}: not for every pass: {', '.join(halves)}")
        used = {value for entry in tests.values() for value in entry.values()} - {MUST_PASS}
        if used != set(reasons):
            odd = ", ".join(sorted(used ^ set(reasons)))
            raise ExpectationsError(f"{file}: reasons not given or not used: {odd}")
        return cls(files=tuple(content), reasons=reasons, tests=tests)

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
