"""Pipeline-Parallel Self-Speculative Decoding for vLLM (arXiv 2509.19368)."""

__version__ = "0.1.0"
