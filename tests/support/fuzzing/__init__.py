"""Random experiments, played and checked in every way, and cut down when they fail."""
