"""Traces of others and our own: which file is of what form, and its lines as requests."""

from simulator.traces.reading import BadLine, TraceEntry, read_trace

__all__ = ["BadLine", "TraceEntry", "read_trace"]
