"""Self-distillation of exit heads: generate, cache states, train.

The target is frozen. The head learns the target's own next-token distribution on
text that the target itself wrote. Every step keeps its result in a *work folder*, in
shards that appear whole or not at all, so that a killed run goes on where it
stopped.
"""
