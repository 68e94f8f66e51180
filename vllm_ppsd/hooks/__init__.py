"""Every touch on a vLLM internal, in one table: ``vllm_ppsd.hooks.table.HOOKS``."""
