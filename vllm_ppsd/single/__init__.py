"""One device: the exit head drafts several tokens, one full pass verifies them.

Everything behind the drafts (scheduling, rejection sampling, what counts) is
vLLM's own speculative decoding; this package is a proposer for it.
"""
