"""One episode: tau2's or a user's agent, against the proxy."""
