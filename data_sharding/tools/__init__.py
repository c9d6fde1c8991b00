"""Index, verify, describe and preview data sets."""
