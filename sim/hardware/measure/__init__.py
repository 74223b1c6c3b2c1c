"""The profiler: what is measured, in which order, and the folder that it goes to."""
