"""Drives trajectories: obeys the core's commands through the backends."""
