"""Disturbs whole processes at random, for a time, and checks that nothing is lost or accepted."""
