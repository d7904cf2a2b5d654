"""The Kubernetes API, as far as Headroom uses it. Must not depend on what is done with it."""
