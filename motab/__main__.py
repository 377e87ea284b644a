"""Runs the command: `python -m motab`."""

from motab.cli import main

main()
