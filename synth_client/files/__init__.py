"""Gets bytes safely to disk: atomic files, the journal, files of records."""
