"""What `motab init` and `motab doctor` find out about scripted servers."""
