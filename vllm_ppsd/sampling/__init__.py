"""Coupled sampling: stage 0 draws its draft with the noise that the last stage draws with."""
