"""Scripts that run in the trainer's environment, and import nothing of motab's."""
