"""`tahoe shard`: write, check and inspect data sets."""
