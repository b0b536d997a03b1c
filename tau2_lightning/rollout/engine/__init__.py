"""vLLM servers: launch, supervise, ask."""
