"""What architectures cost, and what they may cost."""
