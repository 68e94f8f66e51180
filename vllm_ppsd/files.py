"""Files and folders: read with errors that name the place, written whole or not at all.

What is written can be read by whom the umask lets read it, whatever made it: safetensors makes
files that are their owner's alone.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from vllm_ppsd.config.errors import PPSDConfigError, problems

Model = TypeVar("Model", bound=BaseModel)

_BINARY = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"PAR1": "Parquet",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
"""Kinds of file that are taken for text, by their first bytes."""


@contextmanager
def reading(path: Path, error: type[PPSDConfigError] = PPSDConfigError) -> Iterator[None]:
    """Name the file when the system refuses to read it.

    Args:
        path: what is read, where the system does not say it.
        error: to raise.
    """
    try:
        yield
    except OSError as problem:
        reason = problem.strerror or problem
        raise error(f"cannot read {problem.filename or path}: {reason}") from None


def check_readable(path: Path, error: type[PPSDConfigError] = PPSDConfigError) -> None:
    """Refuse a file that this process may not read: safetensors calls it missing."""
    with reading(path, error), path.open("rb"):
        pass


def read_text(path: Path, error: type[PPSDConfigError] = PPSDConfigError) -> str:
    """Return a file's text: UTF-8, with or without a byte-order mark.

    Raises:
        PPSDConfigError: of the class ``error``; it cannot be read, or the line is no such text.
    """
    with reading(path, error):
        content = path.read_bytes()
    for start, kind in _BINARY.items():
        if content.startswith(start):
            raise error(f"{path} is a {kind} file, not text; unpack or convert it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise error(f"{path}, line {line}: no UTF-8 text; convert the file") from None


def read_json(path: Path, error: type[PPSDConfigError] = PPSDConfigError) -> Any:
    """Return what a JSON file holds.

    Raises:
        PPSDConfigError: of the class ``error``; names the file and the line.
    """
    return _json(read_text(path, error), path, 1, error)


def read_json_object(path: Path, error: type[PPSDConfigError] = PPSDConfigError) -> dict[str, Any]:
    """Return the JSON object in a file; raises as ``read_json``."""
    content = read_json(path, error)
    if not isinstance(content, dict):
        raise error(f"{path} is no JSON object")
    return content


def read_json_lines(
    path: Path, error: type[PPSDConfigError] = PPSDConfigError, *, ended: bool = False
) -> Iterator[tuple[int, Any]]:
    """Yield the number, from 1, and the value of every line that is not blank.

    Args:
        path: a file with a JSON value a line.
        error: to raise.
        ended: leave out a last line without its end, which was being written when the writer
            was stopped.

    Raises:
        PPSDConfigError: of the class ``error``; names the file and the line.
    """
    # At line feeds only: a JSON string may hold other line separators.
    lines = read_text(path, error).split("\n")
    for number, line in enumerate(lines[:-1] if ended else lines, start=1):
        if line.strip():
            yield number, _json(line, path, number, error)


def _json(text: str, path: Path, line: int, error: type[PPSDConfigError]) -> Any:
    """Return the value of ``text``, which begins at a line of a file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        place = line + problem.lineno - 1
        raise error(
            f"{path}, line {place}: no JSON: {problem.msg}, column {problem.colno}"
        ) from None
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}, line {line}: no JSON that can be read: {problem}") from None


def read_yaml(path: Path, error: type[PPSDConfigError] = PPSDConfigError) -> Any:
    """Return what a YAML file holds.

    Raises:
        PPSDConfigError: of the class ``error``; names the file and, where it is known, the line.
    """
    text = read_text(path, error)
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise error(f"{path}{line}: no YAML: {problem.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise error(f"{path}: no YAML: {problem}") from None


def read_model(
    path: Path, model: type[Model], error: type[PPSDConfigError] = PPSDConfigError
) -> Model:
    """Return the JSON file of a pydantic model.

    Raises:
        PPSDConfigError: of the class ``error``; names the file and the line or the fields.
    """
    try:
        return model.model_validate(read_json(path, error))
    except ValidationError as problem:
        raise error(f"{path}: {problems(problem, 'the file')}") from None


def open_tensors(path: Path, error: type[PPSDConfigError] = PPSDConfigError) -> Any:
    """Return a safetensors file as ``safe_open`` does.

    Raises:
        PPSDConfigError: of the class ``error``; the file cannot be read, or is truncated.
    """
    check_readable(path, error)
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as problem:
        raise error(f"{path} is truncated or no safetensors file: {problem}") from None


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file beside ``path``, then move it there.

    The temporary name starts with a dot and keeps the ending's letters last, so that
    no listing by ending mistakes a leftover for a shard.
    """
    staging = path.with_name(f".{path.name}.partial")
    staging.unlink(missing_ok=True)
    staging.touch()
    mode = staging.stat().st_mode
    write(staging)
    staging.chmod(mode)
    with staging.open("rb+") as file:
        os.fsync(file.fileno())
    staging.rename(path)


def write_folder_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a folder beside ``path``, then move it there.

    Args:
        path: must not exist; its parents are made.
        write: is given the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        staging = private / path.name
        staging.mkdir()
        write(staging)
        mode = staging.stat().st_mode & 0o666
        for file in staging.rglob("*"):
            if file.is_file():
                file.chmod(mode)
        staging.rename(path)
    finally:
        shutil.rmtree(private, ignore_errors=True)
