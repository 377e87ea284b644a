"""Measures the proxy's speed: simulated upstreams, the published loop, scenarios, and one table."""
