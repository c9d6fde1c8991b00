"""Beside and after a run: ship metrics to MLflow, compare runs. MLflow lives here."""
