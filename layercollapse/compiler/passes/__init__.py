"""Rewrites of the graph that keep what it computes, and the registry that says in which order."""
