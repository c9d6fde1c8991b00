"""Image files: open, inspect, resize."""
