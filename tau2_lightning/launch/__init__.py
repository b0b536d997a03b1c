"""Where the processes of a run live, and how they are started: one machine, torchrun, Slurm, Ray."""
