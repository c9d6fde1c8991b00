"""Evaluate and draw finished runs, with torch."""
