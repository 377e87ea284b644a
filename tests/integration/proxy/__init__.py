"""Engine, API and probe on scripted backends and toy servers."""
