"""Fits the efficiency tables of `router.core.coefficients` to measurements and says how right they are."""
