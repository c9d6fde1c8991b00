"""`tahoe shard` and `tahoe data`: data sets written, checked, shown."""
