"""Tests of `trajectory_records`: the file of records and the thread that writes it."""
