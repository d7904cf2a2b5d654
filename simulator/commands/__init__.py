"""What each command of ``python -m simulator`` does, from what was typed to what is printed."""
