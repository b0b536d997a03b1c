"""``python -m tau2_lightning.report``: runs as one HTML page (docs/report.md).

``tau2_lightning.evaluation.report`` is another command: it compares the scores of two runs as a table on the screen.
"""
