"""Makes training data from records: filters, masks and exports."""
