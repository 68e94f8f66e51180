"""Self-distillation of exit heads.

The target is frozen. The head learns the target's own next-token distribution on text that the
target itself wrote. ``distill`` runs the ``rounds`` of a ``recipe``, and in each the steps
``generate`` (text), ``states`` (cache) and ``fit``; ``evaluate`` judges heads. Every step keeps
its result in a *work folder*, so that a killed run goes on where it stopped.
"""
