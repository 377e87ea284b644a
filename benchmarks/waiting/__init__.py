"""Compares what waste costs with the least that it could cost, in simulated time."""
