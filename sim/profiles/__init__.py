"""Look-ups of times and bytes: profile tables, opened and interpolated."""
