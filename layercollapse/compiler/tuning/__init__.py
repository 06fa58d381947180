"""The fastest of the variants in which a region, or the whole network, can be written."""
