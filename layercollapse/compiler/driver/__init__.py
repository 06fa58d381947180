"""The call that users make: candidates, the search for those that keep the tolerance, and what is reported."""
