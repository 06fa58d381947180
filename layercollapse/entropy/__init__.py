"""Counting the signs of rectifier inputs in any forward pass, and the entropies made from the counts."""
