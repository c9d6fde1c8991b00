"""Metrics, console log, watchdog."""
