"""What is kept of a run: its summary, diagnosis, tables and folder."""
