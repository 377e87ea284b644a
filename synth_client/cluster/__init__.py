"""Asks from the nodes of a Ray cluster."""
