"""A target's weights: once, from one place, those that the index names."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

from vllm_ppsd.config.errors import ExitHeadError
from vllm_ppsd.exit_head.create import read_tensors
from vllm_ppsd.exit_head.fingerprint import describe_target, fingerprint
from vllm_ppsd.exit_head.target_files import check_model, model_folder, weight_files

NORM = "model.norm.weight"


def bare_copy(model: Path, folder: Path) -> Path:
    return shutil.copytree(model, folder, ignore=shutil.ignore_patterns("ppsd"))


def split(folder: Path) -> Path:
    """Put a model's weights into two files with an index."""
    single = folder / "model.safetensors"
    tensors = load_file(single)
    weight_map = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        part = {n: tensors[n] for n in sorted(tensors)[number - 1 :: 2]}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    single.unlink()
    return folder


def with_duplicates(folder: Path) -> Path:
    """Put the weights into the folder once more, in Mistral's format."""
    save_file(
        {"norm.weight": torch.ones(128), NORM: torch.ones(128)}, folder / "consolidated.safetensors"
    )
    return folder


@pytest.fixture
def single(tiny_llama: Path, tmp_path: Path) -> Path:
    return bare_copy(tiny_llama, tmp_path / "single")


@pytest.fixture
def sharded(tiny_llama: Path, tmp_path: Path) -> Path:
    return split(bare_copy(tiny_llama, tmp_path / "sharded"))


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_weights_that_are_there_twice_count_once(kind: str, request: pytest.FixtureRequest):
    folder: Path = request.getfixturevalue(kind)
    before, norm = fingerprint(folder), read_tensors(folder, NORM)[NORM]
    with_duplicates(folder)
    assert fingerprint(folder) == before
    assert torch.equal(read_tensors(folder, NORM)[NORM], norm)


def test_the_index_decides_even_beside_a_whole_file(sharded: Path, tiny_llama: Path):
    before = fingerprint(sharded)
    shutil.copy(tiny_llama / "model.safetensors", sharded)
    assert fingerprint(sharded) == before == fingerprint(tiny_llama)


def test_without_index_all_parts_count(sharded: Path):
    before = fingerprint(sharded)
    (sharded / "model.safetensors.index.json").unlink()
    assert fingerprint(sharded) == before


def test_a_part_that_is_missing_is_named(sharded: Path):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ExitHeadError, match=r"index\.json names model-00002-of-00002\.safetensors"):
        fingerprint(sharded)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "line 1: no JSON"),
        ("{}", "no weight_map"),
        ('{"weight_map": {"a": 1}}', "no weight_map"),
    ],
)
def test_a_damaged_index_is_named(text: str, message: str, sharded: Path):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ExitHeadError, match=message):
        weight_files(sharded)


def test_a_folder_without_other_weights_is_refused(single: Path):
    with_duplicates(single)
    (single / "model.safetensors").unlink()
    with pytest.raises(ExitHeadError, match=r"holds no \*\.safetensors weights"):
        fingerprint(single)


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"", b"\x02\0\0\0\0\0\0\0[]"]
)
def test_what_is_no_safetensors_file_is_named(content: bytes, single: Path):
    (single / "model.safetensors").write_bytes(content)
    with pytest.raises(ExitHeadError, match=r"model\.safetensors is truncated or no"):
        describe_target(single)


def test_truncated_weights_are_named(single: Path):
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ExitHeadError, match=r"model\.safetensors is truncated.*ends before"):
        describe_target(single)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_target_of_another_user_is_named(
    name: str, single: Path, monkeypatch: pytest.MonkeyPatch
):
    opened = open

    def refuse(file: Any, *arguments: Any, **options: Any) -> Any:
        if Path(file) == single / name:
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *arguments, **options)

    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(ExitHeadError, match=f"cannot read {single / name}: Permission denied"):
        describe_target(model_folder(str(single)))


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "a/b/model"])
def test_a_mistyped_folder_is_not_looked_for_on_the_hub(name: str, hub: Hub):
    with pytest.raises(ExitHeadError, match=f"{name} does not exist or is no folder"):
        model_folder(name)
    assert hub.fetched == {}


class Hub:
    """The hub with one repository, ``me/model``; its snapshots lie in ``cache``.

    Attributes:
        repository: its files.
        fetched: how often each file was sent, by folder and name.
        offline: whether it cannot be reached.
    """

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self._cache = repository, cache
        self.fetched: dict[tuple[Path, str], int] = {}
        self.offline = False

    def snapshot_download(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        cache_dir: str | None = None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
    ) -> str:
        assert repo_id == "me/model"
        root = Path(cache_dir) if cache_dir else self._cache
        folder = root / "models--me--model" / (revision or "main")
        wanted = [
            path
            for path in self.repository.rglob("*")
            if path.is_file() and self._is_wanted(path, allow_patterns, ignore_patterns)
        ]
        for path in wanted:
            name = str(path.relative_to(self.repository))
            if (folder / name).exists():
                continue
            if self.offline:
                raise LocalEntryNotFoundError("the snapshot is not complete")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name)
            self.fetched[root, name] = self.fetched.get((root, name), 0) + 1
        return str(folder)

    def _is_wanted(self, path: Path, allowed: list[str], ignored: list[str]) -> bool:
        name = str(path.relative_to(self.repository))
        return any(fnmatch(name, p) for p in allowed) and not any(fnmatch(name, p) for p in ignored)

    @property
    def names(self) -> set[str]:
        return {name for _, name in self.fetched}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "repository", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    monkeypatch.delenv("VLLM_USE_MODELSCOPE", raising=False)
    return hub


WEIGHTS = {
    "single": {"model.safetensors"},
    "sharded": {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"},
}


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_weights_come_once_with_what_tokenizers_read(
    kind: str, request: pytest.FixtureRequest, hub: Hub
):
    repository: Path = with_duplicates(request.getfixturevalue(kind))
    repository.rename(hub.repository)
    (hub.repository / "original").mkdir()
    for name in ("merges.txt", "tokenizer.model", "vocab.bpe", "chat_template.jinja"):
        (hub.repository / name).touch()
    for name in ("pytorch_model.bin", "model.gguf", "original/part.safetensors", "README.md"):
        (hub.repository / name).touch()
    folder = model_folder("me/model")
    assert {"merges.txt", "tokenizer.model", "vocab.bpe", "chat_template.jinja"} < hub.names
    weights = {n for n in hub.names if n.endswith((".safetensors", ".bin", ".gguf"))}
    assert weights == WEIGHTS[kind]
    assert set(hub.fetched.values()) == {1}
    assert fingerprint(folder) == fingerprint(hub.repository)


def test_parts_without_an_index_are_fetched(sharded: Path, hub: Hub):
    with_duplicates(sharded).rename(hub.repository)
    (hub.repository / "model.safetensors.index.json").unlink()
    model_folder("me/model")
    assert {n for n in hub.names if n.endswith(".safetensors")} == WEIGHTS["sharded"]


def test_weights_come_to_where_vllm_looks_for_them(single: Path, hub: Hub, tmp_path: Path):
    single.rename(hub.repository)
    folder = model_folder("me/model", "v1", str(tmp_path / "downloads"))
    assert folder == tmp_path / "downloads" / "models--me--model" / "v1"
    assert {root for root, _ in hub.fetched} == {tmp_path / "downloads"}


def test_off_line_what_is_needed_is_enough(single: Path, hub: Hub):
    single.rename(hub.repository)
    (hub.repository / "merges.txt").touch()
    for patterns in (["config.json"], ["model.safetensors"]):
        hub.snapshot_download("me/model", allow_patterns=patterns, ignore_patterns=[])
    hub.offline = True
    assert fingerprint(model_folder("me/model")) == fingerprint(hub.repository)


def test_off_line_missing_weights_are_an_error(single: Path, hub: Hub):
    single.rename(hub.repository)
    hub.snapshot_download("me/model", allow_patterns=["config.json"], ignore_patterns=[])
    hub.offline = True
    with pytest.raises(ExitHeadError, match="'me/model' is no folder, and cannot be had"):
        model_folder("me/model")


def test_an_unknown_model_is_refused_before_its_weights_are_fetched(hub: Hub):
    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(hub.repository)
    (hub.repository / "model.safetensors").touch()
    for ask in (model_folder, check_model):
        with pytest.raises(ExitHeadError, match="GPT2LMHeadModel is not supported yet"):
            ask("me/model")
    assert hub.names == {"config.json"}


def test_another_hub_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    with pytest.raises(ExitHeadError, match="VLLM_USE_MODELSCOPE is set"):
        model_folder("me/model")
    assert hub.fetched == {}
