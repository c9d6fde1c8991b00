"""Checks of a config before its run is created."""
