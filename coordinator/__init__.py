"""What runs on a server: plans submodels, aggregates updates, releases models."""
