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


def test_a_binding_for_a_block_ends_with_it(monkeypatch):
    monkeypatch.delenv(cpu_binding.CORES, raising=False)
    monkeypatch.setenv(cpu_binding.PARTITION, "1,5")
    with cpu_binding.bound(1, [6]):
        assert os.environ[cpu_binding.PARTITION] == "6"
    assert cpu_binding.CORES not in os.environ
    assert os.environ[cpu_binding.PARTITION] == "1,5"
