"""Whole runs of the client: synthesis, scoring, exports."""
