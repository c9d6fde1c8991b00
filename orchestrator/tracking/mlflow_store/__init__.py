"""Runs in MLflow: write them, read them back."""
