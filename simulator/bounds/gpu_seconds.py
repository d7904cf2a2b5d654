"""What no policy can beat: the clairvoyant bound, and the least GPU-seconds the work could take.

The clairvoyant bound of a workload, a pool and a seed is the best attainment known to be attainable there, by whoever
knows all: that of the best of a few clairvoyant strategies (``clairvoyant.PORTFOLIO``), each played over the very same
arrivals, and, where policies are played beside it, of the best of those (``experiment.bounded``). So no policy of a
report beats the bound of that report, and each row of the bound names what attained it (``strategy``).

It is no optimum: the best schedule of a whole trace is out of reach, and a strategy decides request by request without
knowing who will come. What a policy lacks to the bound is regret that knowledge of lengths, engines and queues would
have saved at least; a policy that attains the bound may still be far from the best possible. It bounds attainment
alone, not latency, fairness or cost. Where arrivals follow from ends (``closed``, ``sessions``) it compares runs whose
later arrivals differ.
"""

from simulator.run.play import Played


def gpu_seconds_least(played: Played) -> float:
    """A lower bound on the GPU-seconds of what was served: each request where it costs least, at the fullest batch.

    Prompts at the speed of compute alone; every decoded token at the least share of a step that any batch gives it,
    plus the reading of its own context. Queues, gaps and unlucky batches come on top.
    """
    books = played.books
    prompts = books.column("prompt_tokens") - books.column("cached_tokens")
    outputs = books.column("output_tokens")
    least = None
    for engine in played.engines.values():
        cards = engine.site.member.tp * engine.site.member.pp
        c = engine.site.truth.coefficients
        share_s = engine.replica.least_share_s()
        work = prompts * c.token_s + prompts**2 / 2 * c.token_context_s
        work = work + outputs * (share_s + engine.site.truth.context_s * (prompts + outputs / 2))
        least = work * cards if least is None else least.clip(max=work * cards)
    return float(least.sum()) if least is not None else 0.0
