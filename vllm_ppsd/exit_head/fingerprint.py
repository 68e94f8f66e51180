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
from vllm_ppsd.exit_head.architectures import check_config
from vllm_ppsd.exit_head.config import Target
from vllm_ppsd.exit_head.target_files import CONFIG, read_model_config, weight_files

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


def fingerprint(folder: Path) -> str:
    """Return ``sha256:<hex>`` of a model folder with safetensors weights.

    Raises:
        ExitHeadError: the folder holds no config or no safetensors weights, or they are damaged.
    """
    digest = hashlib.sha256()
    config = read_model_config(folder)
    shape = {field: config.get(field) for field in _SHAPE_FIELDS}
    digest.update(json.dumps(shape, sort_keys=True).encode())
    samples = sorted(sample for file in weight_files(folder) for sample in _samples(file))
    for name, entry, sample in samples:
        digest.update(name.encode() + entry.encode() + sample)
    return f"sha256:{digest.hexdigest()}"


def describe_target(folder: Path) -> Target:
    """Return the ``target`` entry of a head made for the model in ``folder``.

    Raises:
        ExitHeadError: PPSD does not know the model, or its weights cannot be read.
    """
    config = read_model_config(folder)
    check_config(config, folder / CONFIG)
    return Target(
        architecture=config["architectures"][0],
        num_hidden_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        vocab_size=config["vocab_size"],
        fingerprint=fingerprint(folder),
    )


def _samples(file: Path) -> list[tuple[str, str, bytes]]:
    """Return (name, dtype and shape, first bytes) of every tensor of a file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            samples = []
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                if 8 + length + end > size:
                    raise ValueError(f"it ends before the tensor {name}")
                stream.seek(8 + length + begin)
                described = f"{entry['dtype']}{entry['shape']}"
                samples.append((name, described, stream.read(min(SAMPLE_BYTES, end - begin))))
        except (struct.error, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ExitHeadError(
                f"{file} is truncated or no safetensors file ({error}); fetch or copy it again"
            ) from None
        return samples
