"""Comparisons: of methods, proxies, blocks and trained networks."""
