"""Scores steps by a judge's marks, or by the values of a server of the user's own."""
