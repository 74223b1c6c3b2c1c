"""Figures: the only home of matplotlib and seaborn.

traces.py draws what `trace describe` counted; style.py is the look that the figures of reports share, and turns them
into SVG and PNG; charts.py draws plain numbers. Nothing here counts anything.
"""
