"""The policy: the tiny one made from nothing, finding and checking a real one, dialogues as training data."""
