"""A pytest plugin: vLLM's scheduler tests build PPSD's scheduler.

vLLM's files stay as they are. Once they are collected, the names under which they
know vLLM's schedulers are bound to PPSD's.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from conformance.expectations import ELSEWHERE
from conformance.subject import Subject

LIMIT = 120
"""Seconds for one test: a scheduler that never finishes must not hang the run."""

_outcomes: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--max-drafts", type=int, required=True)
    parser.addoption("--outcomes", type=Path, required=True, help="file for the outcomes")


def pytest_configure(config: pytest.Config) -> None:
    for mark in ("cpu_test", "skip_global_cleanup"):
        config.addinivalue_line("markers", f"{mark}: one of vLLM's")


def pytest_collection_finish(session: pytest.Session) -> None:
    Subject.max_drafts = session.config.getoption("--max-drafts")
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "tests":
            for attribute, value in list(vars(module).items()):
                if value is Scheduler or value is AsyncScheduler:
                    setattr(module, attribute, Subject)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done after {LIMIT} s")

    Subject.was_driven = False
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        return (yield)
    finally:
        signal.alarm(0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed and not Subject.was_driven:
        _outcomes[report.nodeid] = ELSEWHERE
    elif report.when == "call" or not report.passed:
        _outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    outcomes: Path = session.config.getoption("--outcomes")
    outcomes.write_text(json.dumps(_outcomes, indent=1))


@pytest.fixture
def caplog_vllm(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """vLLM's fixture of this name, without the rest of its conftest: logs reach caplog."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    return caplog
