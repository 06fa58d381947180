"""Which weights go and stay at zero: budget rules, masks, and guards against networks that become constant."""
