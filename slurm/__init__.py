"""Slurm: the job script, the client, the ranks' rendezvous. Runs on a login node: no torch here.

The room is kept for the cluster launcher; today runs start on one machine (orchestrator.launch).
"""
