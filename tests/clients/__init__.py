"""Stock tools, each in an environment of its own, against `motab serve`."""
