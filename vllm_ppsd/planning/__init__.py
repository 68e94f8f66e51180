"""What a pipeline is expected to do: times of its parts, formulas, a planner."""
