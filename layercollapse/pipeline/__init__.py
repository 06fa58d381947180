"""The whole schedule: train, measure, prune, train again, choose and collapse; interrupted and resumed."""
