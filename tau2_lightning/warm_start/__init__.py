"""Supervised fine-tuning on demonstrations or dialogues, before GRPO."""
