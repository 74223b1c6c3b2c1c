"""What everything else stands on: errors, files, random streams, statistics. It knows nothing of the simulation."""
