"""Measurements: engines that take turns, and what ``vllm-ppsd bench`` makes of them."""
