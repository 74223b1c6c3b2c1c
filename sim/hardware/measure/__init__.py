"""The parts of profile_gpu.py: what is measured, in which order, and where it goes."""
