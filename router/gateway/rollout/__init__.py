"""The way of a config change: load, validate, swap, shadow, canary, roll back."""
