"""Finds out what every upstream and every configured pair can do, for `motab probe`."""
