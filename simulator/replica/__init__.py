"""One simulated replica: scheduler, KV blocks, and the true time of its steps."""
