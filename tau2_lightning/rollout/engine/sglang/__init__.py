"""SGLang as an engine: its command, its JSON and its client. ``in_sglang`` has what is loaded inside it."""
