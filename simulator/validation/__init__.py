"""Pre-rollout validation of a policy: contract, time per decision, side effects, replay against the present policy."""
