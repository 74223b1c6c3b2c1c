"""Programs that attack the simulator at length: `python -m tests.tools.fuzz --help`, and so on."""
