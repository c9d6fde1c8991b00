"""Small programs with torch, which the launcher starts."""
