"""A target's files: where they lie, which of them are its weights, whether PPSD knows the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vllm_ppsd.config.errors import ExitHeadError
from vllm_ppsd.exit_head.architectures import Architecture, check_config
from vllm_ppsd.files import check_readable, read_json_object, reading

CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DUPLICATES = "consolidated*"
"""Files that hold the same weights once more, in Mistral's own format."""

_BESIDE = ("*.json", "*.txt", "*.jinja", "*.model", "*.model.v*", "*.tiktoken", "vocab.*")
"""What a tokenizer and transformers read besides weights."""


def model_folder(model: str, revision: str | None = None, download_dir: str | None = None) -> Path:
    """Return the local folder of a model: itself, or its snapshot from the hub.

    Of a model on the hub the config comes first, and the rest only of a target that PPSD knows:
    the weights that vLLM reads, to where vLLM looks for them, and what tokenizers read.

    Args:
        model: a folder or a name on the hub.
        revision: on the hub.
        download_dir: vLLM's ``--download-dir``; None for the hub's own cache.

    Raises:
        ExitHeadError: the model is neither a folder nor to be had, or PPSD does not know it.
    """
    folder = _config_folder(model, revision, download_dir)
    check_config(read_model_config(folder), folder / CONFIG)
    if folder == Path(model):
        return folder
    if (folder / INDEX).is_file():
        _fetch(model, revision, download_dir, _indexed(folder))
    else:
        _fetch(model, revision, download_dir, [SINGLE])
        if not (folder / SINGLE).is_file():
            _fetch(model, revision, download_dir, ["*.safetensors"])
    # Off line, what was fetched before is all there is, and it may do.
    with suppress(ExitHeadError):
        _fetch(model, revision, download_dir, _BESIDE)
    return folder


def check_model(
    model: str, revision: str | None = None, download_dir: str | None = None
) -> Architecture:
    """Return what is known of a target, by its config alone; arguments as of ``model_folder``.

    Raises:
        ExitHeadError: PPSD does not know it; says what it knows.
    """
    folder = _config_folder(model, revision, download_dir)
    return check_config(read_model_config(folder), folder / CONFIG)


def read_model_config(folder: Path) -> dict[str, Any]:
    """Return a model folder's ``config.json``.

    Raises:
        ExitHeadError: there is none, or it is no JSON object.
    """
    return read_json_object(folder / CONFIG, ExitHeadError)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a model's weights, as vLLM and transformers choose them.

    The index decides where there is one, since a folder may hold the same weights twice.

    Raises:
        ExitHeadError: there are none, one that the index names is missing, or one cannot be read.
    """
    if (folder / INDEX).is_file():
        files = [folder / name for name in _indexed(folder)]
        if missing := [file.name for file in files if not file.exists()]:
            raise ExitHeadError(
                f"{folder / INDEX} names {', '.join(missing)}, which {folder} does not hold; copy "
                "or fetch the model again"
            )
    elif (folder / SINGLE).is_file():
        files = [folder / SINGLE]
    else:
        files = sorted(file for file in folder.glob("*.safetensors") if not file.match(DUPLICATES))
    if not files:
        raise ExitHeadError(f"the target {folder} holds no *.safetensors weights")
    for file in files:
        check_readable(file, ExitHeadError)
    return files


def _indexed(folder: Path) -> list[str]:
    """Return the names of the files that a folder's index names."""
    weights = read_json_object(folder / INDEX, ExitHeadError).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(n, str) for n in weights.values()):
        raise ExitHeadError(f"{folder / INDEX} has no weight_map from tensors to files")
    return sorted(set(weights.values()))


def _config_folder(model: str, revision: str | None, download_dir: str | None) -> Path:
    """Return a model's folder; from the hub, with its config and index alone."""
    path = Path(model)
    with reading(path, ExitHeadError):
        if path.is_dir():
            return path
        is_path = path.exists() or path.is_absolute() or len(path.parts) > 2
    if is_path or model.startswith("."):
        raise ExitHeadError(f"the target {model} does not exist or is no folder")
    if os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true"):
        raise ExitHeadError(
            f"VLLM_USE_MODELSCOPE is set, but PPSD does not fetch targets from there; download "
            f"{model} and name its folder"
        )
    return _fetch(model, revision, download_dir, [CONFIG, INDEX])


def _fetch(
    model: str, revision: str | None, download_dir: str | None, patterns: Sequence[str]
) -> Path:
    """Fetch files that are not there yet; return the snapshot's folder."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                cache_dir=download_dir,
                allow_patterns=list(patterns),
                ignore_patterns=[DUPLICATES, "*/*.safetensors"],
            )
        )
    except Exception as error:
        raise ExitHeadError(
            f"the target {model!r} is no folder, and cannot be had from the hub: {error}"
        ) from error
