"""Reading names file and line; what is written appears whole, with the modes of the umask."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from vllm_ppsd.config.errors import PPSDConfigError, TrainingError
from vllm_ppsd.files import (
    open_tensors,
    read_json,
    read_json_lines,
    read_json_object,
    read_model,
    read_text,
    read_yaml,
    write_folder_whole,
    write_whole,
)


def json_lines(path: Path) -> list[tuple[int, Any]]:
    return list(read_json_lines(path))


READERS = [read_text, read_json, json_lines, read_yaml, open_tensors]


@pytest.mark.parametrize("read", READERS)
def test_what_cannot_be_read_is_named(read: Callable[[Path], Any], tmp_path: Path):
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "x", "No such file")):
        with pytest.raises(PPSDConfigError, match=f"cannot read {path}: {reason}"):
            read(path)


@pytest.mark.parametrize("read", READERS)
def test_a_file_of_another_user_is_named(
    read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "private"
    path.touch()

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    # Tests may run as root, whom no mode keeps out.
    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(PPSDConfigError, match=f"cannot read {path}: Permission denied"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": "\xe9"}\n', "line 2: no UTF-8 text"),
        ('{"a": 1}\n'.encode("utf-16"), "line 1: no UTF-8 text"),
        (gzip.compress(b'{"a": 1}\n', mtime=0), "is a gzip file"),
        (b"PAR1\x15\x04", "is a Parquet file"),
        (b'{"a": 1}\n\n{"a": \n', "line 3: no JSON"),
        (b"[" * 100_000, "line 1: no JSON"),
        (b"1" * 5000, "line 1: no JSON"),
    ],
)
def test_what_is_no_text_or_no_json_is_named_with_its_line(
    content: bytes, message: str, tmp_path: Path
):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(PPSDConfigError, match=f"a.jsonl(, | ){message}"):
        json_lines(path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}\r\n')
    assert json_lines(path) == [(1, {"a": 1}), (3, {"a": 2})]


def test_a_last_line_that_was_cut_off_can_be_left_out(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    assert list(read_json_lines(path, ended=True)) == [(1, {"a": 1})]


def test_a_json_file_of_several_lines_has_the_line(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('{\n  "a": 1,\n}\n')
    with pytest.raises(TrainingError, match=r"a\.json, line 3: no JSON"):
        read_json(path, TrainingError)
    path.write_text("[]")
    with pytest.raises(PPSDConfigError, match="is no JSON object"):
        read_json_object(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [", ", line 2: no YAML"),
        ("a: 1\n\tb: 2", ", line 2: no YAML"),
        ("a: \x00", ": no YAML"),
        ("a: 2024-99-99", ": no YAML"),
    ],
)
def test_what_is_no_yaml_is_named(text: str, message: str, tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(PPSDConfigError, match=f"a.yaml{message}"):
        read_yaml(path)


def test_a_wrong_field_is_named_with_its_file(tmp_path: Path):
    class Sizes(BaseModel):
        width: int

    path = tmp_path / "a.json"
    path.write_text('{"width": "wide"}')
    with pytest.raises(PPSDConfigError, match=r"a\.json: width: "):
        read_model(path, Sizes)


def test_a_truncated_safetensors_file_is_named(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(8)}, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(PPSDConfigError, match=r"a\.safetensors is truncated"):
        open_tensors(path)


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def save(path: Path) -> None:
    save_file({"a": torch.zeros(8)}, path)


def test_a_file_has_the_mode_that_the_umask_gives(umask: int, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    leftover = tmp_path / ".a.safetensors.partial"
    leftover.touch(0o600)
    write_whole(path, save)
    assert mode(path) == 0o666 & ~umask
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_has_the_modes_that_the_umask_gives(umask: int, tmp_path: Path):
    def write(folder: Path) -> None:
        save(folder / "a.safetensors")
        (folder / "inner").mkdir()
        (folder / "inner" / "b").touch(0o600)

    path = tmp_path / "new" / "folder"
    write_folder_whole(path, write)
    assert mode(path) == mode(path / "inner") == 0o777 & ~umask
    assert mode(path / "a.safetensors") == mode(path / "inner" / "b") == 0o666 & ~umask
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path):
    def write(folder: Path) -> None:
        (folder / "a").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder_whole(tmp_path / "folder", write)
    assert list(tmp_path.iterdir()) == []
