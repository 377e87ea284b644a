"""Tests the container's image: built, run and asked, with podman."""
