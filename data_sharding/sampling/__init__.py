"""The samples of a batch."""
