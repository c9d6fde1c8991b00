"""Bytes, files, locks, processes."""
