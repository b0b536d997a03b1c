"""Rollouts: engine, weight sync, proxy, sessions, chat format, episodes and their collection."""
