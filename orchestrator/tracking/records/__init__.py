"""Runs as flat records, and the catalogue of published systems."""
