"""Weights from the trainer to the engines, and the parity guard."""
