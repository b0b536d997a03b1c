"""The OpenAI proxy of a policy: token-exact sessions behind OpenAI's interface."""
