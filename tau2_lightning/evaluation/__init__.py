"""Scores: pass^k with intervals, evaluations and the report at the end of a run."""
