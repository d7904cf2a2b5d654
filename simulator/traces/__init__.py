"""Trace files to requests: the formats (``formats/``, one file each), and the reader that recognises them."""

from simulator.traces.entry import BadLine, TraceEntry
from simulator.traces.reading import read_trace

__all__ = ["BadLine", "TraceEntry", "read_trace"]
