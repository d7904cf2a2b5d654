"""The process's own log on standard error, as text or JSON, through a sink that no caller waits for.

Must not depend on what is logged.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Final

import orjson

from router.gateway.telemetry.line_sink import LineSink

_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class SinkHandler(logging.Handler):
    """A logging handler that writes to a LineSink: to standard error unless one is given."""

    def __init__(self, sink: LineSink | None = None) -> None:
        super().__init__()
        self.sink = sink or LineSink(sys.stderr.fileno(), at_once=True)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.sink.write(self.format(record).encode("utf-8", "replace") + b"\n")
        except Exception:  # as every handler of the standard library does: a line ends no request
            self.handleError(record)

    def flush(self) -> None:
        self.sink.flush()

    def close(self) -> None:
        self.sink.close()
        super().close()


class JsonFormatter(logging.Formatter):
    """One JSON object a line. *worker*: which of several processes writes it, empty: the only one."""

    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {
            "time": stamp[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._worker:
            fields["worker"] = self._worker
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields).decode()


def install(form: str, worker: str = "") -> None:
    """Log as *form* says from here on, ``json`` or ``text``; a terminal keeps its coloured lines of text."""
    root = logging.getLogger()
    if form == "text" and sys.stderr.isatty():
        return
    handler = SinkHandler()
    prefix = f"worker {worker}: " if worker else ""
    text = logging.Formatter(_TEXT.replace("%(message)s", prefix + "%(message)s"), "%Y-%m-%dT%H:%M:%S%z")
    handler.setFormatter(JsonFormatter(worker) if form == "json" else text)
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)


def dropped() -> int:
    """Lines of this process's log that were not written."""
    return sum(each.sink.dropped for each in logging.getLogger().handlers if isinstance(each, SinkHandler))
