"""The matrix of what the gateway measures against what engines and a plain client see beside it."""
