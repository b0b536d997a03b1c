"""The chat format of a model: messages to prompt tokens, sampled tokens to messages, whole or streamed."""
