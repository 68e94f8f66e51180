"""vLLM's sources beside the installed ones."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from vllm_ppsd.contract.entries import Entry


def record(folder: Path, version: str) -> None:
    """Write what an unpacked wheel says of its version to a folder."""
    file = folder / f"vllm-{version}.dist-info" / "METADATA"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


def patched(hook: Entry, diff: Path, source: Path, folder: Path) -> tuple[str, str]:
    """Apply a hook's diff to a copy of its module.

    Args:
        hook: the hook.
        diff: against the module.
        source: folder of vLLM's package.
        folder: where the copy goes.

    Returns:
        The module before and after, both of which compile.

    Raises:
        subprocess.CalledProcessError: the diff does not apply.
    """
    relative = Path(*hook.target.partition(":")[0].split(".")).with_suffix(".py")
    copy = folder / relative
    copy.parent.mkdir(parents=True)
    shutil.copy(source / relative, copy)
    before = copy.read_text()
    command = ["patch", "-p1", "--fuzz=0", "-i", str(diff)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = copy.read_text()
    compile(after, str(copy), "exec")
    return before, after
