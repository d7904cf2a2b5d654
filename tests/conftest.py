"""What is tested is what runs: compiled modules that fit their sources, or the sources (``HEADROOM_COMPILE=no``)."""

import pytest

from router import compiled


def pytest_report_header():
    """The modules that are tested."""
    return f"headroom: {compiled.state()} modules"


def pytest_configure(config):
    """Before anything else of ours is imported."""
    if compiled.changed():
        with pytest.raises(SystemExit) as stale:
            compiled.refuse_stale()
        pytest.exit(str(stale.value), returncode=2)
