"""What belongs to one model family alone: a folder a family, found by ``config.model_type`` in `registry`."""
