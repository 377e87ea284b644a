"""Reports trajectories, and the calls that they consist of, as spans of OpenTelemetry traces."""
