"""Rewrites of the graph that keep what it computes."""
