"""vLLM's own scheduler tests, run against PPSD's scheduler."""
