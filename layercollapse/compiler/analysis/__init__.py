"""What is known of a graph without changing it: constants, bounds, costs, and what stands between layers."""
