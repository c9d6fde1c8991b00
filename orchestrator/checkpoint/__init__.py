"""Checkpoints as files; no torch in the store and the retention."""
