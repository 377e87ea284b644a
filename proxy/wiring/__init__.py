"""Builds upstreams, models and the service from a configuration."""
