"""From records to a plain module, and from a module to files."""
