"""Traces made of traces: recipes, and models dealt to requests."""
