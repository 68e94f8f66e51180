"""What an acceptance rate is worth, for stages of equal cost (plain Python)."""


def ideal_speedup(stages: int, alpha: float) -> float:
    """Return n / (alpha + n(1 - alpha)): PPSD over a plain pipeline of n equal stages."""
    return stages / (alpha + stages * (1 - alpha))
