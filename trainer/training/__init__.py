"""Trains a student from a recipe, with LLaMA-Factory or TRL."""
