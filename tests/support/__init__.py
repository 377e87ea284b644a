"""Shares scripted servers, records and recorded answers among the tests."""
