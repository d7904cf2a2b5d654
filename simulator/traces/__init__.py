"""Trace files to requests: the formats (``formats/``, one file each), and the reader that recognises them."""

from simulator.traces.entry import TraceEntry
from simulator.traces.reading import read_trace

__all__ = ["TraceEntry", "read_trace"]
