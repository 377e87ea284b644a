"""Random trajectories against what keeps and reads them: the journal, records, rescoring."""
