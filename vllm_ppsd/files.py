"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file beside ``path``, then move it there.

    The temporary name starts with a dot and keeps the ending's letters last, so that
    no listing by ending mistakes a leftover for a shard.
    """
    staging = path.with_name(f".{path.name}.partial")
    write(staging)
    with staging.open("rb+") as file:
        os.fsync(file.fileno())
    staging.rename(path)
