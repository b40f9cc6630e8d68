"""Scores of untrained architectures, all from one super-network."""
