"""Questions over many runs: comparisons, searches for capacity, sweeps."""
