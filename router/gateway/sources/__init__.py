"""Backends that come and go by themselves: where they are found, and how what is found becomes backends."""
