"""Drives trajectories: obeys the core's commands by way of the backends."""
