"""The engine that steps every iteration, which the real one is compared with."""
