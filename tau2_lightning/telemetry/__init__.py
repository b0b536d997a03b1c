"""Measurements of a run: seconds by phase, memory, metrics of a step."""
