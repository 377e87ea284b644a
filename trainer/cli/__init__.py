"""Defines the trainer's commands, one file a command."""
