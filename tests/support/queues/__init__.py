"""The queues of the textbooks: formulas, policies that make a GPU one, and their runs."""
