"""Metrics for Prometheus: the fleet's, over the API; a coordinator's own; and a Grafana board that shows both."""
