"""The contract fits the installed vLLM, and a change to vLLM is named, whatever it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.sources import record
from vllm.sampling_params import SamplingParams

from vllm_ppsd.cli.doctor import Finding, contract_findings
from vllm_ppsd.cli.main import main
from vllm_ppsd.contract import check
from vllm_ppsd.contract.check import install_all, mismatches, problems
from vllm_ppsd.contract.entries import Entry
from vllm_ppsd.contract.hook import HookError, install, installed, locate
from vllm_ppsd.contract.series import contract_for, installed_vllm, is_supported, supported
from vllm_ppsd.contract.source import digests, files_digest, installed_source

CONTRACT = contract_for(installed_vllm()[1])


@pytest.fixture(scope="session")
def whole_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the installed vLLM that the contract speaks of, as from its wheel."""
    folder = tmp_path_factory.mktemp("vllm")
    for module in {target.partition(":")[0] for target in CONTRACT.targets}:
        relative = Path(*module.split(".")).with_suffix(".py")
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(installed_source() / relative, folder / relative)
    record(folder, CONTRACT.version)
    return folder


@pytest.fixture
def copy(whole_copy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_copy, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    problems.cache_clear()
    yield
    problems.cache_clear()


def change(copy: Path, module: str, old: str, new: str) -> None:
    """Change one character in a file."""
    assert sum(a != b for a, b in zip(old, new, strict=True)) == 1
    path = copy.joinpath(*module.split(".")).with_suffix(".py")
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def unfit(copy: Path) -> list[Finding]:
    return [finding for finding in contract_findings(copy) if finding.state != "ok"]


def test_the_installed_vllm_fits():
    assert mismatches(CONTRACT, installed_source()) == []
    # Of the version that the table is of, the files need not even be parsed.
    assert installed_vllm()[1].startswith(CONTRACT.version)
    assert files_digest(installed_source(), CONTRACT.targets) == CONTRACT.files


ASYNC = "vllm.v1.core.sched.async_scheduler"


@pytest.mark.parametrize(
    ("module", "old", "new", "subject", "ours"),
    [
        (
            ASYNC,
            "request.num_output_placeholders -= len(new_token_ids)",
            "request.num_output_placeholders += len(new_token_ids)",
            "override AsyncScheduler._update_request_with_output",
            "vllm_ppsd.engine.scheduler.PPSDScheduler._update_request_with_output",
        ),
        (
            ASYNC,
            "self.num_sampled_tokens_per_step + cur_num_spec_tokens",
            "self.num_sampled_tokens_per_step - cur_num_spec_tokens",
            "meaning AsyncScheduler._update_after_schedule",
            "vllm_ppsd.engine.scheduler",
        ),
        (
            "vllm.v1.request",
            "self.next_decode_eligible_step = 0",
            "self.next_decode_eligible_step = 1",
            "field Request.next_decode_eligible_step",
            "vllm_ppsd.engine",
        ),
        (
            "vllm.v1.utils",
            "cpu, gpu = cpu[:n], gpu[:n]",
            "cpu, gpu = cpu[:n], gpu[:m]",
            "call CpuGpuBuffer.copy_to_gpu",
            "vllm_ppsd.runner.v1",
        ),
        (
            "vllm.sampling_params",
            "if self.min_p > _SAMPLING_EPS or self.logit_bias:",
            "if self.min_p < _SAMPLING_EPS or self.logit_bias:",
            "hook sampling-parameters",
            "vllm_ppsd.hooks.changes.sampling_parameters",
        ),
    ],
    ids=["override", "meaning", "field", "call", "hook"],
)
def test_doctor_names_what_one_character_changes(
    copy: Path, capsys, module: str, old: str, new: str, subject: str, ours: str
):
    change(copy, module, old, new)
    (finding,) = unfit(copy)
    assert (finding.subject, finding.state) == (subject, "broken")
    assert f"has changed (digest {digests(copy, CONTRACT.targets)[_target(subject)]}" in (
        finding.detail
    )
    assert f"{ours} relies on it" in finding.detail
    assert CONTRACT.version in finding.remedy
    assert main(["doctor", "--source", str(copy)]) == 1
    assert subject.partition(" ")[2] in capsys.readouterr().out


def _target(subject: str) -> str:
    kind, _, name = subject.partition(" ")
    return next(e.target for e in CONTRACT.entries if (e.kind, e.name) == (kind, name))


def test_doctor_names_what_is_gone(copy: Path):
    (copy / "vllm/v1/core/sched/async_scheduler.py").unlink()
    details = [finding.detail for finding in unfit(copy)]
    assert len(details) == sum(ASYNC in target for target in CONTRACT.targets)
    assert all("is not there" in detail for detail in details)


def test_doctor_refuses_a_folder_without_vllm(tmp_path: Path, capsys):
    assert main(["doctor", "--source", str(tmp_path)]) == 2
    assert "holds no folder `vllm`" in capsys.readouterr().err
    (tmp_path / "vllm").mkdir()
    assert main(["doctor", "--source", str(tmp_path)]) == 2
    assert "does not say which vLLM it is" in capsys.readouterr().err


def test_what_another_platform_needs_does_not_stop_this_one(copy: Path, monkeypatch):
    change(
        copy,
        "vllm.v1.worker.gpu_worker",
        "runner; subclasses override this.",
        "runner; subclasses override this!",
    )
    findings = unfit(copy)
    assert {finding.subject for finding in findings} == {"override Worker._make_model_runner"}
    assert {finding.state for finding in findings} == {"note"}
    monkeypatch.setattr(check, "installed_source", lambda: copy)
    assert problems("cpu") == []
    assert all("_make_model_runner" in problem for problem in problems("cuda"))
    assert len(problems("cuda")) == len(findings)


def test_another_series_is_a_problem(monkeypatch):
    assert is_supported(f"{supported()[-1]}.7+cpu")
    assert not is_supported("0.31.9")
    monkeypatch.setattr(check, "installed_vllm", lambda: ("vllm", "0.31.9"))
    (problem,) = problems("cpu")
    assert "vllm 0.31.9" in problem
    assert supported()[-1] in problem
    # Doctor compares it with the newest table all the same.
    assert contract_for("0.31.9") == contract_for(f"{supported()[-1]}.0")


def test_installing_twice_changes_nothing():
    install_all()
    before = [locate(hook)[2] for hook in CONTRACT.hooks]
    install_all()
    assert [locate(hook)[2] for hook in CONTRACT.hooks] == before
    assert all(installed(hook) for hook in CONTRACT.hooks)


def test_a_hook_is_put_on_no_other_hook():
    install_all()
    (stated,) = (hook for hook in CONTRACT.hooks if hook.name == "sampling-parameters")
    other = replace(stated, ours="vllm_ppsd.hooks.changes.no_draft_rpc")
    with pytest.raises(HookError, match="already carries hook sampling-parameters"):
        install(other)


def test_nothing_is_installed_where_another_plugin_was_before(monkeypatch):
    target = "vllm.sampling_params:SamplingParams.verify"
    hook = Entry("hook", "vllm_ppsd.hooks.changes.sampling_parameters", target, "", "")
    monkeypatch.setattr(SamplingParams, "verify", lambda *_: None)
    contract = replace(CONTRACT, entries=(hook,))
    monkeypatch.setattr(check, "contract_for", lambda _: contract)
    monkeypatch.setattr(check, "problems", lambda _: [])
    with pytest.raises(HookError, match="another plugin has replaced"):
        install_all()
    assert not installed(hook)


def test_a_refusal_names_three_reasons_and_counts_the_rest(monkeypatch):
    monkeypatch.setattr(check, "problems", lambda _: list("abcde"))
    with pytest.raises(HookError, match=r"^a; b; c; and 2 more$"):
        install_all()
