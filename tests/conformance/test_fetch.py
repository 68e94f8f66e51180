"""Out of vLLM's source distribution come the tests that are needed, nothing else."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from conformance.fetch import FetchError, unpack


def pack(archive: Path, *names: str) -> Path:
    with tarfile.open(archive, "w:gz") as target:
        for name in names:
            target.addfile(tarfile.TarInfo(f"vllm-1.0/{name}"), io.BytesIO())
    return archive


def test_unpack(tmp_path: Path) -> None:
    needed = {
        "tests/__init__.py",
        "tests/v1/core/__init__.py",
        "tests/v1/core/test_scheduler.py",
        "tests/v1/kv_connector/unit/utils.py",
    }
    other = {
        "__init__.py",
        "setup.py",
        "tests/conftest.py",
        "tests/models/__init__.py",
        "tests/v1/core/test_output.py",
        "vllm/__init__.py",
    }
    folder = tmp_path / "whole"
    unpack(pack(tmp_path / "vllm-1.0.tar.gz", *needed, *other), folder)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == needed


def test_no_tests(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"vllm-1\.0\.tar\.gz has no tests"):
        unpack(pack(tmp_path / "vllm-1.0.tar.gz", "setup.py"), tmp_path / "whole")
