"""Whole trainings and evaluations with scripted trainers and servers."""
