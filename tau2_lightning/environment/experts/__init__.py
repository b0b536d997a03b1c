"""Experts of dialogues: agents that ask, look up and confirm, and use only what they were told or have read."""
