"""A work folder: numbered shards, each of which appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.files import read_json_object, write_whole

MANIFEST = "manifest.json"


class Shards:
    """Numbered files of one kind in a folder, made under one set of settings.

    Args:
        folder: where the shards lie; made if missing.
        suffix: the files' ending, with its dot.
        settings: what the shards depend on; written beside them.

    Raises:
        TrainingError: the folder holds shards made under other settings.
    """

    def __init__(self, folder: Path, suffix: str, settings: dict[str, Any]) -> None:
        self.folder = folder
        self._suffix = suffix
        folder.mkdir(parents=True, exist_ok=True)
        manifest = folder / MANIFEST
        wanted = json.loads(json.dumps(settings))
        if manifest.is_file():
            made = read_json_object(manifest, TrainingError)
            differing = [key for key in wanted | made if wanted.get(key) != made.get(key)]
            if differing:
                key = differing[0]
                raise TrainingError(
                    f"{folder} was made with {key} = {made.get(key)!r}, but now it is "
                    f"{wanted.get(key)!r}; name another work folder, or remove this one"
                )
        else:
            write_whole(manifest, lambda path: path.write_text(json.dumps(wanted, indent=2)))

    def path(self, index: int) -> Path:
        """Return the file of shard ``index``, written or not."""
        return self.folder / f"{index:05d}{self._suffix}"

    def write(self, index: int, write: Callable[[Path], Any]) -> None:
        """Let ``write`` make shard ``index``."""
        write_whole(self.path(index), write)


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        needed: bytes.

    Raises:
        TrainingError: says how much is needed and how much is free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TrainingError(
            f"{purpose} needs about {needed / 1e9:.2f} GB in {folder}, but only "
            f"{free / 1e9:.2f} GB are free; free some, name another work folder, or use "
            "fewer prompts"
        )
