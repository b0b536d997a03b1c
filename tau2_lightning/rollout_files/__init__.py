"""Every episode of a run in files: ``rollouts/`` of the run folder, one file a step (docs/report.md)."""
