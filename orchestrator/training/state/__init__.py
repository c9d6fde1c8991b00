"""The training state, saved and restored."""
