"""The proxy's page without a browser: who gets what, which files it reads, what it costs."""
