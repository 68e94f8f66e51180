"""The exit head on disk: a folder with ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from vllm_ppsd.config.errors import ExitHeadError
from vllm_ppsd.exit_head.config import ExitHeadConfig, Target
from vllm_ppsd.exit_head.fingerprint import describe_target
from vllm_ppsd.exit_head.target_files import model_folder
from vllm_ppsd.files import open_tensors, read_model, reading, write_folder_whole

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def expected_shapes(config: ExitHeadConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a head of this config must hold.

    The tensors of a transformer head's layers carry the target's own names under
    ``layers.<i>.`` and are checked when they are loaded.
    """
    hidden = config.target.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (hidden,)}
    if config.start_layer is not None:
        shapes["input_map.weight"] = (hidden, hidden)
        shapes["input_map.bias"] = (hidden,)
    if config.output_map:
        shapes["map.weight"] = (hidden, hidden)
        shapes["map.bias"] = (hidden,)
    for index in range(len(config.deeper_layers)):
        shapes[f"deeper_in.{index}.weight"] = (hidden, hidden)
        shapes[f"deeper_out.{index}.weight"] = (hidden, hidden)
    if config.steps > 1:
        shapes["fuse.weight"] = (hidden, 2 * hidden)
        shapes["fuse.bias"] = (hidden,)
    if config.draft_vocab_size is not None:
        shapes["draft_token_ids"] = (config.draft_vocab_size,)
    return shapes


@dataclass(frozen=True)
class ExitHeadFolder:
    """An exit head on disk whose config and tensor names have been checked."""

    path: Path
    config: ExitHeadConfig

    @classmethod
    def open(cls, path: str | Path) -> ExitHeadFolder:
        """Open and check a folder; reads no weights beyond their header.

        Raises:
            ExitHeadError: names the file, field or tensor that is wrong.
        """
        folder = Path(path)
        with reading(folder, ExitHeadError):
            if not folder.is_dir():
                raise ExitHeadError(f"the exit head {folder} does not exist or is no folder")
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                if not (folder / name).is_file():
                    raise ExitHeadError(f"the exit head {folder} holds no {name}")
        head = cls(folder, read_model(folder / CONFIG_FILE, ExitHeadConfig, ExitHeadError))
        head._check_tensors()
        return head

    def digest(self) -> str:
        """Return the sha256 of the weights' file."""
        return f"sha256:{hashlib.sha256((self.path / WEIGHTS_FILE).read_bytes()).hexdigest()}"

    def check_target(
        self, model: str, revision: str | None = None, download_dir: str | None = None
    ) -> None:
        """Refuse a target other than the one this head was made for.

        Args:
            model: the target; these are arguments of ``model_folder``.
            revision: on the hub.
            download_dir: where it is fetched to.

        Raises:
            ExitHeadError: names the first field that differs.
        """
        actual = describe_target(model_folder(model, revision, download_dir))
        for field in Target.model_fields:
            made_for, value = getattr(self.config.target, field), getattr(actual, field)
            if made_for != value:
                raise ExitHeadError(
                    f"the exit head {self.path} was made for another model: target.{field} "
                    f"differs from that of {model}: {made_for}, not {value}"
                )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Read all tensors."""
        with open_tensors(self.path / WEIGHTS_FILE, ExitHeadError) as file:
            return {name: file.get_tensor(name) for name in file.keys()}

    def _check_tensors(self) -> None:
        weights = self.path / WEIGHTS_FILE
        with open_tensors(weights, ExitHeadError) as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        layer_prefixes = tuple(f"layers.{i}." for i in range(self.config.num_layers))
        expected = expected_shapes(self.config)
        for name, shape in expected.items():
            if name not in shapes:
                raise ExitHeadError(f"{weights} misses the tensor {name}")
            if shapes[name] != shape:
                raise ExitHeadError(
                    f"{weights}: the tensor {name} has shape {shapes[name]}, expected {shape}"
                )
        for name in shapes:
            if name not in expected and not name.startswith(layer_prefixes or ("\0",)):
                raise ExitHeadError(f"{weights} holds an unknown tensor {name}")
        for prefix in layer_prefixes:
            if not any(name.startswith(prefix) for name in shapes):
                raise ExitHeadError(f"{weights} misses the tensors {prefix}*")


def save(
    path: str | Path,
    config: ExitHeadConfig,
    tensors: Mapping[str, torch.Tensor],
    beside: Iterable[Path] = (),
) -> None:
    """Write a head so that the folder appears whole or not at all.

    Args:
        beside: files to copy into the folder, such as a model card.

    Raises:
        ExitHeadError: the folder exists already, or the tensors do not fit the config.
    """
    folder = Path(path)
    if folder.exists():
        raise ExitHeadError(f"{folder} exists already; remove it or name another folder")

    def write(staging: Path) -> None:
        (staging / CONFIG_FILE).write_text(config.model_dump_json(indent=2) + "\n")
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            str(staging / WEIGHTS_FILE),
        )
        for file in beside:
            shutil.copy(file, staging)
        ExitHeadFolder.open(staging)

    write_folder_whole(folder, write)
