"""From a captured graph to records: one converter for each aten operation that has weights or bends."""
