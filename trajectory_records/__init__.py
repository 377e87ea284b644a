"""The records of trajectories: their form, and the writer that appends them to a file."""
