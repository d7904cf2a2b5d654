"""Backends of which the config gives no more than the address: their kind, models and limits read from the engines."""
