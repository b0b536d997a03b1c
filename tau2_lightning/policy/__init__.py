"""The policy model: the tiny one made from nothing, loading a real one, and Hugging Face export."""
