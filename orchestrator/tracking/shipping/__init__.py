"""Processes beside the ranks: ship metrics, watch the node."""
