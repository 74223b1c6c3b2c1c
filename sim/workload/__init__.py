"""The requests that a run plays: read from traces or drawn."""
