"""Cores are dealt out to stages."""

from __future__ import annotations

import os

import pytest

from vllm_ppsd.config import cpu_binding
from vllm_ppsd.config.errors import PPSDConfigError


def test_cores_are_dealt_out_in_order():
    assert cpu_binding.deal([0, 1], 2) == "0|1"
    assert cpu_binding.deal([0, 1, 2, 3, 4], 2) == "0,1,2|3,4"


def test_too_few_cores_are_refused():
    with pytest.raises(PPSDConfigError, match=r"3 workers .* need at least 3 CPU cores"):
        cpu_binding.deal([0, 1], 3)


def test_a_users_own_binding_wins(monkeypatch):
    monkeypatch.setenv(cpu_binding.CORES, "0|0|0")
    cpu_binding.apply(3)
    assert os.environ[cpu_binding.CORES] == "0|0|0"
