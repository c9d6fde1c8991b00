"""Where shards are read from: disk, cache, network."""
