"""Real data sets that the package registries ship."""
