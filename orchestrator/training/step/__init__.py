"""One training step, one evaluation."""
