"""The code of each model family: one folder per family, found by ``config.model_type`` in `registry`."""
