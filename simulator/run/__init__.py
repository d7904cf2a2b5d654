"""One run on virtual time: arrivals, routers, engines, faults, results."""
