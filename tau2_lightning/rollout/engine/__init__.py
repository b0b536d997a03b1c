"""The inference engine: vLLM servers, their clients, and the code loaded inside them."""
