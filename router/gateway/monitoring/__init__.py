"""What each engine reports: health probes and the metrics pages that are scraped."""
