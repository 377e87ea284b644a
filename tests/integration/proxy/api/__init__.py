"""Tests the HTTP interface over scripted models."""
