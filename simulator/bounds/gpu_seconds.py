"""A lower bound on the GPU-seconds of a run's work.

simulator/README.md explains the clairvoyant bound on attainment; see ``clairvoyant.PORTFOLIO`` for its strategies and
``experiment.bounded`` for how the policies of the same report enter it.
"""

from simulator.run.play import RunResult


def gpu_seconds_lower_bound(played: RunResult) -> float:
    """A lower bound on the GPU-seconds of the requests served: each on its cheapest engine, in the cheapest batch.

    Prompts run at the speed of compute alone; a decoded token takes the smallest share of a step that any batch gives
    it, and the reading of its own context. Queues, idle time and smaller batches come on top.
    """
    table = played.table
    prompts = table.column("prompt_tokens") - table.column("cached_tokens")
    outputs = table.column("output_tokens")
    lower = None
    for engine in played.engines.values():
        cards = engine.site.member.tp * engine.site.member.pp
        c = engine.site.truth.coefficients
        share_s = engine.replica.step_share_min_s()
        work = prompts * c.token_s + prompts**2 / 2 * c.token_context_s
        work = work + outputs * (share_s + engine.site.truth.context_s * (prompts + outputs / 2))
        lower = work * cards if lower is None else lower.clip(max=work * cards)
    return float(lower.sum()) if lower is not None else 0.0
