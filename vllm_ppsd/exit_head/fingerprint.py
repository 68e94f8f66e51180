"""A target's fingerprint: cheap to compute, different for different weights.

It covers the fields of ``config.json`` that shape the model, the name, shape and
dtype of every tensor, and the bytes at the start of every tensor. So it reads a
few kilobytes per tensor, never whole weights.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from vllm_ppsd.config.errors import ExitHeadError
from vllm_ppsd.exit_head.config import Target

SAMPLE_BYTES = 4096
_SHAPE_FIELDS = (
    "architectures",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)


def model_folder(model: str, revision: str | None = None) -> Path:
    """Return the local folder of a model: itself, or its snapshot from the hub.

    Raises:
        ExitHeadError: the model is neither a folder nor to be had.
    """
    path = Path(model)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=["*.safetensors", "*.json"])
        )
    except Exception as error:
        raise ExitHeadError(
            f"cannot read the weights of the target {model!r} to compare it with the "
            f"exit head: {error}"
        ) from error


def fingerprint(folder: Path) -> str:
    """Return ``sha256:<hex>`` of a model folder with safetensors weights.

    Raises:
        ExitHeadError: the folder holds no config or no safetensors weights.
    """
    digest = hashlib.sha256()
    config = read_model_config(folder)
    shape = {field: config.get(field) for field in _SHAPE_FIELDS}
    digest.update(json.dumps(shape, sort_keys=True).encode())
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ExitHeadError(f"the target {folder} holds no *.safetensors weights")
    for name, entry, sample in sorted(s for file in files for s in _samples(file)):
        digest.update(name.encode() + entry.encode() + sample)
    return f"sha256:{digest.hexdigest()}"


def describe_target(folder: Path) -> Target:
    """Return the ``target`` entry of a head made for the model in ``folder``.

    Raises:
        ExitHeadError: its config is missing or incomplete, or there are no weights.
    """
    config = read_model_config(folder)
    try:
        return Target(
            architecture=config["architectures"][0],
            num_hidden_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            vocab_size=config["vocab_size"],
            fingerprint=fingerprint(folder),
        )
    except KeyError as error:
        raise ExitHeadError(f"{folder / 'config.json'} has no {error.args[0]}") from None


def read_model_config(folder: Path) -> dict[str, Any]:
    """Return a model folder's ``config.json``.

    Raises:
        ExitHeadError: there is none, or it is no JSON object.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ExitHeadError(f"cannot read the target's {file}: {error}") from error
    if not isinstance(config, dict):
        raise ExitHeadError(f"{file} is no JSON object")
    return config


def _samples(file: Path) -> list[tuple[str, str, bytes]]:
    """Return (name, dtype and shape, first bytes) of every tensor of a file."""
    with file.open("rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            header: dict[str, Any] = json.loads(stream.read(length))
        except (struct.error, ValueError) as error:
            raise ExitHeadError(f"{file} is no safetensors file: {error}") from error
        header.pop("__metadata__", None)
        samples = []
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            stream.seek(8 + length + begin)
            described = f"{entry['dtype']}{entry['shape']}"
            samples.append((name, described, stream.read(min(SAMPLE_BYTES, end - begin))))
    return samples
