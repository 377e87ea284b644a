"""Unit tests of the benchmarks' simulators."""
