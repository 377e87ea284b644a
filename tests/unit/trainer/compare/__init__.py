"""Tests the plan of a comparison, its stages and its estimates."""
