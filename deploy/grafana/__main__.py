"""`python -m deploy.grafana` writes the dashboard beside this file."""

import json
from pathlib import Path

from deploy.grafana.dashboard import dashboard

FILE = Path(__file__).parent / "dashboards" / "headroom.json"

if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")
    print(FILE)
