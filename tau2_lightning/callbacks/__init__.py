"""Lightning callbacks: progress on screen, tables, the report at the end of a run."""
