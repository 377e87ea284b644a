"""Several of our parts together, with recorded or scripted servers."""
