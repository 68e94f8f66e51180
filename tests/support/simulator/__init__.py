"""A simulator of the protocol, event by event, that the cost model is tested against."""
