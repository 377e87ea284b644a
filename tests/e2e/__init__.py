"""The command and the proxy as processes, with real llama.cpp models."""
