"""Tests what lies before a route: connections, their limits, clients that are slow or gone."""
