"""From trajectories to what a loss sees: rows, credit, micro-batches."""
