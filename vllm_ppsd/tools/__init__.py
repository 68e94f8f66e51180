"""What the commands and benchmarks share: engines, prompts, reports, progress bars."""
