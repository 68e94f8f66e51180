"""``python -m tests.conformance.run``: vLLM's scheduler tests against PPSD's scheduler.

Each pass is a pytest process of its own, in a folder that holds vLLM's tests and
nothing of the project. It takes a few minutes, and the network the first time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.sources import record

from .expectations import PASSES, Expectations, files_for
from .fetch import FetchError, fetch, fetch_python, installed_version

TESTS = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run every pass, say what is not as expected, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/conformance"))
    parser.add_argument(
        "--version", help="of vLLM, by its Python files alone (default: the installed one)"
    )
    given = parser.parse_args()
    cache = given.cache.resolve()
    try:
        version = given.version or installed_version()
        expectations = Expectations.read(files_for(version))
        folder = fetch(version, cache)
        paths = _python_paths(given.version, cache) if given.version else []
        problems = [p for at in PASSES for p in _run(expectations, folder, cache, at, paths)]
    except (FetchError, PytestError) as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if problems else 0


class PytestError(RuntimeError):
    """pytest did not get as far as outcomes."""


def _python_paths(version: str, cache: Path) -> list[Path]:
    """Return where Python finds a vLLM that is not installed, as one for CPUs."""
    record(cache / f"{version}-record", f"{version}+cpu")
    return [fetch_python(version, cache), cache / f"{version}-record"]


def _run(
    expectations: Expectations, folder: Path, cache: Path, at: str, paths: Sequence[Path]
) -> list[str]:
    log, report = cache / f"{at}.log", cache / f"{at}.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider"]
    command += ["-p", "conformance.plugin", f"--max-drafts={PASSES[at]}", f"--outcomes={report}"]
    with log.open("w") as out:
        subprocess.run(
            [*command, *expectations.files],
            cwd=folder,
            env=os.environ | _environment(cache, paths),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    outcomes = json.loads(report.read_text()) if report.is_file() else {}
    if not outcomes:
        raise PytestError(f"{at}: pytest ran no test; its output is in {log}")
    problems = expectations.problems(outcomes, at)
    must, cannot = expectations.split(outcomes, at)
    print(f"{at}: {must} must pass, {cannot} cannot apply, {len(problems)} not as expected")
    for problem in problems:
        print(f"  {problem}")
    if problems:
        print(f"  pytest's output: {log}")
    return problems


def _environment(cache: Path, paths: Sequence[Path]) -> dict[str, str]:
    return {
        # The package beside these tests, whichever is installed.
        "PYTHONPATH": os.pathsep.join(map(str, [TESTS, TESTS.parent, *paths])),
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # as on CPUs
        # A model that has no stand-in is not there, whatever this machine has.
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cache / "hub"),
    }


if __name__ == "__main__":
    sys.exit(main())
