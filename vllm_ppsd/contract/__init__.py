"""What PPSD relies on in vLLM, one table per vLLM series (``v0_32.py`` is vLLM 0.32)."""
