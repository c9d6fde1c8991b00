"""Strategies: how model, gradients and optimizer state are spread over the ranks."""
