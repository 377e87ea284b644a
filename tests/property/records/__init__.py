"""Hypothesis holds what keeps and reads trajectories to what the monitor made."""
