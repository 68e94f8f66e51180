"""vLLM's V2 model runner on a machine without a GPU."""
