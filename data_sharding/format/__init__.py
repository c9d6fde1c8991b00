"""Shards and manifests on disk."""
