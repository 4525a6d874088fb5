"""Pure: the round machine, strategies, selection, aggregation. Time and chance are arguments."""
