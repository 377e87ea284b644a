"""Defines the client's commands, one file a command or family."""
