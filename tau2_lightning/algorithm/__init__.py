"""Advantages, policy losses, KL and off-policy corrections: pure functions of tensors, each with formula and source."""
