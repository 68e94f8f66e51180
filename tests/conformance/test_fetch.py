"""Out of vLLM's source distribution come the tests that are needed, nothing else."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from conformance.fetch import FetchError, is_needed, is_python, unpack


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
    unpack(pack(tmp_path / "vllm-1.0.tar.gz", *needed, *other), folder, is_needed)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == needed


def test_no_tests(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"vllm-1\.0\.tar\.gz has none of the files"):
        unpack(pack(tmp_path / "vllm-1.0.tar.gz", "setup.py"), tmp_path / "whole", is_needed)


def test_python_files(tmp_path: Path) -> None:
    needed = {"vllm/__init__.py", "vllm/v1/request.py"}
    other = {"setup.py", "tests/v1/core/utils.py", "vllm/py.typed", "csrc/cpu/vllm/torch.py"}
    folder = tmp_path / "whole"
    unpack(pack(tmp_path / "vllm-1.0.tar.gz", *needed, *other), folder, is_python)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == needed
