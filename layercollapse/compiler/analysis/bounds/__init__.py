"""Interval bound propagation: which neurons cannot change their sign for any input in a box."""
