"""Draws trajectories in a browser, for the report and for the proxy's page."""
