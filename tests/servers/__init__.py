"""Trajectories and values on real servers."""
