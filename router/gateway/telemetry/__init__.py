"""What a gateway exports: metrics, demand, the record of core events."""
