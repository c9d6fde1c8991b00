"""`tahoe doctor`: checks before a job is submitted."""
