"""The router. Its first import decides whether compiled modules run or their sources: see ``router.compiled``."""

from router.compiled import choose

choose()
