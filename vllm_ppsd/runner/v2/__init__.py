"""vLLM's V2 model runner behind the port."""
