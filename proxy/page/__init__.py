"""The page that people open in a browser: its files, and the data that no other route has."""
