"""Contents of shards, read whole or by their headers."""
