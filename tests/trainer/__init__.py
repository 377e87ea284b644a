"""Exports and trainings with LLaMA-Factory and TRL themselves."""
