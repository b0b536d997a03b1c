"""Code that vLLM loads into its own processes. It imports nothing from the rest of the package."""
