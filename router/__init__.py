"""The router. Its first import decides whether compiled modules run or their sources: see ``router.compiled``."""

from router.search_path import leave_working_folder

leave_working_folder()  # before the first import that a file there could stand in for

from router.compiled import choose  # noqa: E402 - the same

choose()
