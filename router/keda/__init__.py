"""KEDA's external scaler: its messages and its service. Needs the extra ``keda``."""
