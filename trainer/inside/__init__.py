"""Scripts that run in environments of their own, and import nothing of motab's."""
