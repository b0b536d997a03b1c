"""GRPO training of tool-using agents on tau2-bench, structured as a PyTorch Lightning project."""

__version__ = "0.1.0"
