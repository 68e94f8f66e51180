"""What PPSD relies on in vLLM: one table per vLLM series (``0.32.toml`` is vLLM 0.32)."""
