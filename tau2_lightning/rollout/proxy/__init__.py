"""The OpenAI proxy of a policy: token-exact sessions behind the interface agents already speak."""
