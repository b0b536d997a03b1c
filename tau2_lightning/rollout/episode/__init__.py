"""One episode of an agent, the built-in one or a user's own, against the proxy."""
