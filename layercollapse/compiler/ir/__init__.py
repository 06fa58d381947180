"""The graph of records that passes rewrite, the records and their algebra, and the names that nodes have."""
