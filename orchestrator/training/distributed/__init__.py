"""Ranks, collectives, sharded optimizer state."""
