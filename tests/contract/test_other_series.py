"""The tables of vLLMs that are not installed fit their sources, which pip fetches."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from conformance.fetch import FetchError, fetch_python
from support.sources import patched, record

from vllm_ppsd.cli.main import main
from vllm_ppsd.contract.check import mismatches
from vllm_ppsd.contract.entries import Entry
from vllm_ppsd.contract.series import contract_for, installed_vllm, supported
from vllm_ppsd.contract.source import digests, files_digest

ROOT = Path(__file__).parents[2]
INSTALLED = installed_vllm()[1]
OTHERS = [series for series in supported() if not INSTALLED.startswith(f"{series}.")]
HOOKS = [(series, hook) for series in OTHERS for hook in contract_for(f"{series}.0").hooks]


@functools.cache
def fetched(series: str) -> Path | FetchError:
    try:
        return fetch_python(contract_for(f"{series}.0").version, ROOT / ".cache" / "sources")
    except FetchError as error:
        return error


def source(series: str) -> Path:
    found = fetched(series)
    if isinstance(found, FetchError):
        pytest.skip(str(found))
    return found


@pytest.mark.parametrize("series", OTHERS)
def test_the_table_fits(series: str):
    contract = contract_for(f"{series}.0")
    assert mismatches(contract, source(series)) == []
    assert files_digest(source(series), contract.targets) == contract.files


@pytest.mark.parametrize("series", OTHERS)
def test_what_is_said_to_be_gone_is_gone_and_everything_else_is_listed(series: str):
    installed = contract_for(INSTALLED).targets
    contract = contract_for(f"{series}.0")
    gone = installed - contract.targets
    assert [name for name in gone if digests(source(series), [name])[name]] == []
    assert contract.targets <= installed


@pytest.mark.parametrize("series", OTHERS)
def test_doctor_looks_at_an_unpacked_wheel_by_the_table_of_its_series(
    series: str, tmp_path: Path, capsys
):
    contract = contract_for(f"{series}.0")
    (tmp_path / "vllm").symlink_to(source(series) / "vllm")
    record(tmp_path, contract.version)
    assert main(["doctor", "--source", str(tmp_path)]) == 0
    assert f"fit vLLM {contract.version}" in capsys.readouterr().out


@pytest.mark.parametrize("series", OTHERS)
def test_a_diff_of_a_series_is_one_of_a_hook(series: str):
    names = {hook.name for hook in contract_for(f"{series}.0").hooks}
    assert {path.stem for path in (ROOT / "patches" / series).iterdir()} <= names


@pytest.mark.parametrize(("series", "hook"), HOOKS, ids=lambda v: getattr(v, "name", v))
def test_the_diff_applies(series: str, hook: Entry, tmp_path: Path):
    own = ROOT / "patches" / series / f"{hook.name}.diff"
    diff = own if own.is_file() else ROOT / "patches" / f"{hook.name}.diff"
    patched(hook, diff, source(series), tmp_path)
