"""Samples -> batches -> the rank."""
