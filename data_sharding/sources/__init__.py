"""Where images to be written come from."""
