"""Scaling targets: what becomes of the autoscaler's advice. One file here is one target; see ``target.py``.

Must not depend on the gateway or the autoscaler: a config is checked with these modules, and the autoscaler applies its
advice by them.
"""

from router.targets.registry import names, spec_of
from router.targets.target import Advice, Applied, Outcome, Replicas, Target, TargetSpec

__all__ = ["Advice", "Applied", "Outcome", "Replicas", "Target", "TargetSpec", "names", "spec_of"]
