"""What runs inside SGLang's own Python environment. Nothing here imports this project or its packages."""
