"""Real engines on one machine without a GPU: install once, start, pin, end. See README.md in this folder."""
