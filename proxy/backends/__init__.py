"""Wire formats, one server kind a file. Only frozen dataclasses travel inward from here."""
