"""Processes of a run: their placement on nodes and devices, and their start by hand, torchrun, Slurm or Ray."""
