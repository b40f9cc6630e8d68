"""How a search decides which architectures to score."""
