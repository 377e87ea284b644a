"""`motab probe`: what every upstream can do, and whether each configured pair can do its work."""
