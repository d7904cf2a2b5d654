"""Configs of other routers, rewritten as a ``router.yaml``: ``headroom import``.

A format is one module of ``formats``: it reads its own files as a tree of settings with their lines (``entry.py``) and
puts what has an equivalent into a draft (``draft.py``). What it does not take stays in the tree, so that the draft
names it, with its line, in a comment: nothing is dropped in silence. Secrets become references to the environment.

Must not depend on a running gateway; what is written is checked against the schema of the config before it is printed.
"""
