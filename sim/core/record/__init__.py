"""What was seen while a run lasts: rows of requests and switches, series, a timeline."""
