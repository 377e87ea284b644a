"""Scores steps by a judge's marks where a teacher gives no log-probabilities."""
