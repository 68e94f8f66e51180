"""Where an exit head is looked for when the user says just ``ppsd``."""

from __future__ import annotations

import os
from pathlib import Path

from vllm_ppsd.config.errors import ExitHeadError
from vllm_ppsd.exit_head.checkpoint import ExitHeadFolder
from vllm_ppsd.exit_head.fingerprint import fingerprint
from vllm_ppsd.exit_head.target_files import check_model, model_folder
from vllm_ppsd.hooks.marks import METHOD

HEAD_VARIABLE = "VLLM_PPSD_HEAD"
SHIPPED = Path(__file__).parent.parent / "heads"


def find(
    named: str | None,
    model: str,
    revision: str | None = None,
    stages: int = 2,
    download_dir: str | None = None,
) -> ExitHeadFolder:
    """Return the exit head for ``model``.

    Args:
        named: a folder, or None or ``ppsd`` to look in the model's own folder,
            then in ``VLLM_PPSD_HEAD``, then among the shipped heads.
        model: the target, a folder or a name on the hub.
        revision: the target's revision on the hub.
        stages: pipeline size. Of the shipped heads one that reads the later stages of such
            a pipeline comes before one that reads the exit's state alone.
        download_dir: where the target is fetched to, see ``model_folder``.

    Raises:
        ExitHeadError: PPSD does not know the model, there is no head for it, or it is broken.
    """
    if named not in (None, METHOD):
        check_model(model, revision, download_dir)
        return ExitHeadFolder.open(named)
    folder = model_folder(model, revision, download_dir)
    if (folder / METHOD).is_dir():
        return ExitHeadFolder.open(folder / METHOD)
    if from_environment := os.environ.get(HEAD_VARIABLE):
        return ExitHeadFolder.open(from_environment)
    shipped = _shipped_for(folder, stages)
    if shipped is not None:
        return shipped
    raise ExitHeadError(
        f"no exit head for {model}. Looked for: the folder {folder / METHOD}; the "
        f"environment variable {HEAD_VARIABLE} (not set); a head shipped with "
        f"vllm-ppsd whose fingerprint fits (none of {_names()}). Train one with "
        f"`vllm-ppsd train {model} --exit-layer E --data PROMPTS.jsonl -o {folder / METHOD}`"
    )


def _shipped_for(folder: Path, stages: int) -> ExitHeadFolder | None:
    heads = [ExitHeadFolder.open(path) for path in _shipped_paths()]
    if not heads:
        return None
    wanted = fingerprint(folder)
    fitting = [head for head in heads if head.config.target.fingerprint == wanted]
    for_pipeline = [head for head in fitting if len(head.config.stages or ()) == stages]
    for_any = [head for head in fitting if not head.config.deeper_layers]
    return next(iter([*for_pipeline, *for_any, *fitting]), None)


def _shipped_paths() -> list[Path]:
    return sorted(path.parent for path in SHIPPED.glob("*/config.json"))


def _names() -> str:
    return ", ".join(path.name for path in _shipped_paths()) or "no shipped head"
