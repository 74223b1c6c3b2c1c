"""Drawn requests: what a workload says (spec.py, laws.py, presets.py) and how it is drawn, in windows of time.

generate.py is the way in. arrivals.py and rates.py say when requests come, popularity.py for which model, draws.py how
long they are; flows.py and sessions.py put these together, prefixes.py plans shared prompts; merging.py makes a trace.
"""
