"""Which samples form a batch."""
