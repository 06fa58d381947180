"""A model as a graph: captured, watched, its rectifiers found, its channels followed, its outputs compared."""
