"""What other benchmark programs write, read for profiles: one module a format, on `record` and `files`."""
