"""From trajectories to the input of a loss: rows, credit, micro-batches."""
