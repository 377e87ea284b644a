"""Tests how requests are sent, repeated and resumed, whatever server answers."""
