"""What a run writes down, and the table and the page made from it."""
