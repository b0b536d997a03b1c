"""tau2's databases, copied when written and shared when read."""
