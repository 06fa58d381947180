"""From a pruned network to a shallower dense one."""
