"""Lightning callbacks: progress on screen, checkpoints, tau2 results files."""
