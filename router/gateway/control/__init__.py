"""The control plane: admin and health paths, explanations, the fleet page."""
