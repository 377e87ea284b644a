"""Hypothesis holds the engine to plain loops written separately."""
