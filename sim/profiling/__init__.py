"""From measurements to profile tables: folders of raw measurements, imports of other tools' records, filling, checking.

`measured` reads and writes those folders; everything else here stands on it. The simulator itself never looks in: it
reads the tables that filling writes. The verbs of `python -m sim profile` and sim/hardware use it.
"""
