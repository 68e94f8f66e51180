"""The command line."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from vllm_ppsd.cli.doctor import examine
from vllm_ppsd.cli.main import main
from vllm_ppsd.contract.entries import Kind
from vllm_ppsd.contract.series import contract_for, installed_vllm
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder


def test_doctor_finds_nothing_broken_and_names_every_hook(capsys):
    findings = {finding.subject: finding for finding in examine()}
    for hook in contract_for(installed_vllm()[1]).hooks:
        assert findings[f"hook {hook.name}"].state == "ok"
    for kind in set(get_args(Kind)) - {"hook"}:
        assert findings[f"{kind}s"].state == "ok"
    assert [f for f in findings.values() if f.state == "broken"] == []
    assert all(f.remedy for f in findings.values() if f.state == "note")
    assert main(["doctor"]) == 0
    assert "speculative-config" in capsys.readouterr().out


def test_init_head_writes_a_head(tiny_llama: Path, tmp_path: Path):
    output = tmp_path / "head"
    assert main(["init-head", str(tiny_llama), "--exit-layer", "2", "-o", str(output)]) == 0
    assert ExitHeadFolder.open(output).config.exit_layer == 2


def test_errors_are_one_line_and_status_2(tiny_llama: Path, tmp_path: Path, capsys):
    (tmp_path / "there").mkdir()
    command = ["init-head", str(tiny_llama), "--exit-layer", "2", "-o", str(tmp_path / "there")]
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["demo-model", str(tmp_path / "there")]) == 2


def test_an_unknown_command_is_an_error():
    with pytest.raises(SystemExit):
        main(["trian"])
