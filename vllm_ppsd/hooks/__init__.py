"""What the hooks put in place of vLLM's functions."""
