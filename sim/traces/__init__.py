"""Request traces: what one is, reading and writing it in pieces, reshaping, mixing and describing it.

Start with trace.py (columns of requests) and stream.py (a trace in chunks, and the reading of native files). files.py,
blocks.py and columns.py are the way from bytes to checked columns; shape.py, overlay.py and models.py change streams;
recipe.py and composition.py say and follow how a trace was made; facts.py and load.py describe it; jobs.py has what the
command line calls. Other people's formats are in `sim.traces.formats`, drawn traces in `sim.workloads`.
"""
