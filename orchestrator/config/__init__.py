"""Parse and validate the composed config of a run."""
