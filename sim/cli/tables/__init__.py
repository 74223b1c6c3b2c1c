"""Rich tables for people: only formatting."""
