"""vLLM's own tests and Python files, from its source distribution.

pip fetches it, from whichever index pip is configured with, and checks it against
the sha256 that the index gives. pip asks a source distribution for its metadata by
way of its build backend; vLLM's would want a compiler and its build requirements,
so an empty backend of the same name answers instead, and nothing of vLLM's build
runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from vllm_ppsd.contract.series import installed_vllm

from .models import write_model

NEEDED = (
    PurePosixPath("tests/v1/core/test_scheduler.py"),
    PurePosixPath("tests/v1/core/test_async_scheduler.py"),
    PurePosixPath("tests/v1/core/test_prefix_caching.py"),
    PurePosixPath("tests/v1/core/utils.py"),
    PurePosixPath("tests/v1/kv_connector/unit/utils.py"),
)
"""The scheduler tests and what they import; the packages around them come with them."""

_BACKEND = """
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = Path(folder) / "vllm.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: vllm\\nVersion: {version}\\n")
    return info.name
"""


class FetchError(RuntimeError):
    """vLLM's tests cannot be had."""


def fetch(version: str, cache: Path) -> Path:
    """Return a folder with a vLLM's tests and the model that they name.

    The folder is made once per vLLM version, and appears whole or not at all.

    Raises:
        FetchError: pip could not fetch its source.
    """
    folder = cache / f"vllm-{version}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as staging:
        archive = _download(version, Path(staging))
        whole = Path(staging) / "whole"
        unpack(archive, whole, is_needed)
        write_model(whole)
        (whole / "pytest.ini").write_text("[pytest]\n")  # else pytest finds the project's own
        whole.rename(folder)
    return folder


def fetch_python(version: str, cache: Path) -> Path:
    """Return a folder with the Python files of a vLLM, ``vllm/``, made as ``fetch`` makes its own.

    Raises:
        FetchError: pip could not fetch its source.
    """
    folder = cache / f"vllm-{version}-python"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as staging:
        whole = Path(staging) / "whole"
        unpack(_download(version, Path(staging)), whole, is_python)
        with suppress(OSError):  # Another process was faster.
            whole.rename(folder)
    return folder


def unpack(archive: Path, folder: Path, needed: Callable[[PurePosixPath], bool]) -> None:
    """Unpack the files that are needed, and no other, into ``folder``.

    Args:
        needed: by path within the source.

    Raises:
        FetchError: the archive has none.
    """
    with tarfile.open(archive) as source:
        for member in source:
            path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if member.isfile() and needed(path):
                source.extract(member.replace(name=str(path)), folder, filter="data")
    if not folder.is_dir():
        raise FetchError(f"{archive.name} has none of the files that are needed")


def is_python(path: PurePosixPath) -> bool:
    """Whether a file is a Python file of vLLM's."""
    return path.parts[:1] == ("vllm",) and path.suffix == ".py"


def is_needed(path: PurePosixPath) -> bool:
    """Whether a file is of the tests that are run."""
    if path.name != "__init__.py":
        return path in NEEDED
    return path.parts[0] == "tests" and any(path.parent in file.parents for file in NEEDED)


def installed_version() -> str:
    """Return the version of the installed vLLM.

    Raises:
        FetchError: there is none.
    """
    found = installed_vllm()
    if found is None:
        raise FetchError("no vLLM is installed, so it is not known whose tests to fetch")
    return found[1].partition("+")[0]


def _download(version: str, staging: Path) -> Path:
    backend = staging / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(_BACKEND.format(version=version))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", "vllm", "--no-build-isolation", "--dest", str(staging)]
    done = subprocess.run(
        [*command, f"vllm=={version}"],
        env=os.environ | {"PYTHONPATH": str(backend.parent.resolve())},
        capture_output=True,
        text=True,
    )
    archive = staging / f"vllm-{version}.tar.gz"
    if done.returncode or not archive.is_file():
        raise FetchError(f"pip could not fetch vLLM's source:\n{done.stdout}{done.stderr}")
    return archive
