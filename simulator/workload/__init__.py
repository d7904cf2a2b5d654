"""Arrivals: traces or generators, shaped into requests."""
