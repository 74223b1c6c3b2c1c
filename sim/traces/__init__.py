"""Request traces: what one is, reading and writing it in pieces, reshaping, mixing and describing it.

Start with trace.py (columns of requests) and stream.py (a trace in chunks, and the reading of native files). blocks.py,
files.py and columns.py are the way from bytes to checked columns; shape.py and overlay.py change streams.
"""
