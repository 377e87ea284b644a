"""One module each; milliseconds."""
