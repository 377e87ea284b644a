"""The named benchmarks with EvalScope itself."""
