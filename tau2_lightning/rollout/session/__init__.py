"""The tree of tokens that a session's requests grow, and its export as trajectories."""
