"""Measurements of layers while they train, for callbacks."""
