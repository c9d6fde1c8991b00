"""Runs as jobs of Slurm: submit, follow, requeue."""
