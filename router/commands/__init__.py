"""What each command of ``headroom`` does, one file a command; ``table.py`` lists them and their options."""
