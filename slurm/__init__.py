"""Slurm: the job script, the client, a rehearsal cluster. Runs on a login node: no torch here."""
