"""Fast ways to a score, which stays the same."""
