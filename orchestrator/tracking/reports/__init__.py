"""Compare runs, draw the report."""
