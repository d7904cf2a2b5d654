"""Engines that announce themselves through the shared state, by a process beside each."""
