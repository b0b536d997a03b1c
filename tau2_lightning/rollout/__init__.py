"""Rollouts: engine, weight sync, proxy, sessions, chat format, episodes, collector, trajectories, batches."""
