"""A profile as the YAML that ``router.config.profile`` reads.

Must not depend on how corrections are found.
"""

from math import exp
from typing import Any

import yaml

from router.config.profile import VERSION
from router.core.profile import LEVELS, TERMS, Correction, Profile

_HEAD = """\
# Corrections of Headroom's efficiency tables by measurements, as `headroom-simulator calibrate --profile` found them.
# `profile: <this file>` in router.yaml or pool.yaml applies them. A factor above 1 means slower than the tables.
"""


def profile_text(profile: Profile) -> str:
    """The whole file, corrections in the order of ``LEVELS``."""
    facts = profile.facts
    whole: dict[str, Any] = {
        "headroom_profile": VERSION,
        **{name: facts[name] for name in ("tables", "made_from", "rows", "errors") if name in facts},
        "band": float(f"{profile.band:.3g}"),
        "corrections": [_entry(profile, key) for key in sorted(profile.logs, key=_place)],
    }
    return _HEAD + yaml.safe_dump(whole, sort_keys=False, width=120, default_flow_style=None)


def _place(key: Correction) -> tuple[int, str]:
    return LEVELS.index(key[0]), key[1]


def _entry(profile: Profile, key: Correction) -> dict[str, Any]:
    factors = {term: float(f"{exp(each):.4g}") for term, each in zip(TERMS, profile.logs[key], strict=True)}
    return {"level": key[0], "name": key[1], "rows": profile.rows.get(key, 0), "factors": factors}
