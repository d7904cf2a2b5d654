"""Fits the efficiency tables of `router.core.coefficients` to measurements, and reports the errors of the fit."""
