"""Has the teacher write several corrections at a breach, and keeps one of them."""
