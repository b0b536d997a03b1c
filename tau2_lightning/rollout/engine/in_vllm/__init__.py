"""What is loaded inside vLLM's processes. Imports nothing of ours."""
