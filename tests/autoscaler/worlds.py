"""A pool of two variants with a demand, and a scaling policy whose answer is fixed."""

from dataclasses import replace

from router.config.settings import Settings
from router.config.text import document
from router.core.decisions import ScaleTo
from router.core.policy import Demand
from router.gateway.config.plan import Plan, make
from router.gateway.state import ModelDemand

CONFIG = """
backends:
  - {name: a, url: "http://h:1", models: [m], card: l20, model: qwen2.5-7b, variant: small}
  - {name: b, url: "http://h:2", models: [m, n], card: h20, model: qwen2.5-7b, variant: big}
slo_classes: {default: {ttft_ms: 2000, tpot_ms: 60}}
autoscale: {variants: {small: {min_replicas: 1, max_replicas: 5}}}
"""
ASKED = ModelDemand(3.0, 1000, 200, 100, 98, "default")


def plan(text: str = CONFIG) -> Plan:
    """The plan of that text."""
    parsed = document(text, "r.yaml")
    return make(parsed.parse(Settings), parsed, {})


class Fixed:
    """A scaling policy that advises seven of the small ones, and keeps what it was given."""

    def __init__(self) -> None:
        self.asked: list[Demand] = []

    def scale(self, demand: Demand) -> list[ScaleTo]:
        self.asked.append(demand)
        return [ScaleTo("small", 7, "because")]


def fixed(made: Plan) -> tuple[Plan, Fixed]:
    """The plan with such a policy."""
    policy = Fixed()
    return replace(made, scaling=policy), policy
