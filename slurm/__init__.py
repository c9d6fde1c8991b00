"""Slurm: the job script, the client, a local cluster. Runs on a login node: no torch here."""
