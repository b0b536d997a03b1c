"""The token tree of a session, grown by its requests, and its export as trajectories."""
