"""Sampled requests: noise that both ends of a pipeline can make, and drafts that are drawn."""
