"""The run directory, its plan, its outcome."""
