"""What can be said of a trace, in one pass and bounded memory."""
