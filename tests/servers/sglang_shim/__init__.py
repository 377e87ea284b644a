"""Lets SGLang run on a CPU, for which some packages that it imports have no build."""
