"""Bounds on what a policy can attain: the clairvoyant router, and lower bounds on cost."""
