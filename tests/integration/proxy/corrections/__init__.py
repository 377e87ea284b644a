"""Tests several corrections at a breach, through the HTTP interface."""
