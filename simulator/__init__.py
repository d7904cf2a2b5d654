"""The simulator. ``router`` comes first: it decides whether compiled modules run or their sources."""

import router  # noqa: F401
