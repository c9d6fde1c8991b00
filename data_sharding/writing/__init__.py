"""Write a source as shards."""
