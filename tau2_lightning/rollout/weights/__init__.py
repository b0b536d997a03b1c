"""Weights from the trainer to the engines, and the check that both compute the same."""
