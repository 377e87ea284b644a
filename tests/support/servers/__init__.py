"""Describes each kind of server to the contract that every kind must keep."""
