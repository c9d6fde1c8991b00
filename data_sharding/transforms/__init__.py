"""Crops, pixel augmentation, evaluation protocols, decoding."""
