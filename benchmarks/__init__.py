"""How fast the proxy is: simulated upstreams, the published loop, scenarios, and one table."""
