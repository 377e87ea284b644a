"""Makes the pages and terminal views that people see."""
