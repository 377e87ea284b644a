"""From records to a better student: evaluation."""
