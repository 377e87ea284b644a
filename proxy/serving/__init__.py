"""Runs the service: one process or several, signals, logs."""
