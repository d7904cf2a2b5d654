"""The simulator. ``router`` comes first: it decides whether compiled modules run or their sources."""

import os
import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(__file__)):
    del sys.path[0]  # as router/search_path.py does, which has to be found first
    sys.argv[0] = ""

import router  # noqa: F401
