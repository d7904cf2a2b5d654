"""Worlds for schedulers: random ones, and what a real engine's scheduler does in them."""
