"""A device that is late, on a CPU: what races on a GPU shows here."""

SEED = "LATE_DEVICE_SEED"
"""Environment variable: a worker that finds it has a late device, with orders of this seed."""

TRAP = "LATE_DEVICE_TRAP"
"""Environment variable: one of ``traps.TRAPS``, which such a worker puts back."""
