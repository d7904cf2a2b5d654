"""Several processes that serve one port as one router (``worker_identity.py`` has what one of them is)."""
