"""Runs as Slurm jobs: submit, follow, requeue."""
