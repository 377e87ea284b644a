"""Tests of motab; docs/development.md says which folder holds what."""
