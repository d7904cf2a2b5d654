"""How an engine's use of a card is written down: rows of four tables, and how rows make one whole.

Assumes: shares of the data sheet multiply, overheads add. Must not depend on: any row's numbers
(`tables.py`) or how seconds of a step come of them (`physics.py`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from router.core.step import Number


@dataclass(frozen=True, slots=True)
class EngineEfficiency:
    """What one engine era costs beside the roofline.

    ``step_s``: scheduler and launch, a step; ``layer_s``: kernels that neither bandwidth nor
    compute explains, a layer; ``seq_s``: sampling and bookkeeping, a decoding sequence;
    ``launch_layer_s``: host time to launch a layer's kernels, overlapped with the card's work (eager
    engines; next to nothing where CUDA graphs are replayed);
    ``eager_layer_s``: host time to launch a layer's kernels for a step that holds prompts, which no CUDA graph
    covers: the least that prompts add to a step;
    ``stream_s``: the API server's time to send one token, beside the engine's steps: what bounds the
    tokens a second of a small model on many cards (calibration takes it out of what a card is blamed for);
    ``first_token_s``: API server, tokenizer and first scheduling, outside any step;
    ``read_gain``, ``gemm_gain``: factors on the family's efficiencies; ``reduce_gain``: factor on
    the link's all-reduce latency; ``expert_layer_s``: routing and grouping, a layer with experts;
    ``expert_gain``, ``expert_gemm_gain``: factors on the shares for experts' weights and for their GEMM;
    ``sigma``: relative error of a step predicted with this row; ``latent_layer_s``: the further kernels of a layer with
    latent attention (two down-projections, their norms, two absorbed products);
    ``quantise_gain``: factor on a precision's ``layer_s`` (an era whose
    kernels quantise activations one by one, and not fused with the norm before them);
    ``first_expert_layer_s``: what a layer with experts adds to a first token and to no other sequence's step: seen in
    first tokens at low load and not in the gaps of those that decode meanwhile, so it is outside of steps;
    ``linear_layer_s``: the further kernels of a layer of linear attention (convolution, gates, recurrent state);
    ``expert_launch_s``: host time to launch one expert of a layer, where experts are looped over and not grouped.
    """

    step_s: float
    layer_s: float
    seq_s: float
    first_token_s: float
    read_gain: float = 1.0
    gemm_gain: float = 1.0
    reduce_gain: float = 1.0
    expert_layer_s: float = 25e-6
    expert_gain: float = 0.9
    launch_layer_s: float = 5e-6
    stream_s: float = 20e-6
    eager_layer_s: float = 50e-6
    latent_layer_s: float = 25e-6
    quantise_gain: float = 1.0
    expert_gemm_gain: float = 0.9
    first_expert_layer_s: float = 0.5e-3
    linear_layer_s: float = 45e-6
    expert_launch_s: float = 1e-9
    sigma: float = 0.15


@dataclass(frozen=True, slots=True)
class Family:
    """Share of the sheet's bandwidth and compute that one card architecture gives.

    ``read``: weights; ``kv``: KV cache; ``gemm`` and ``attention``: of dense 16-bit peak; ``host``: factor on
    what the engine's Python costs, by the processors such cards are housed with;
    ``sigma``: relative error of those shares; ``kernel``: factor on the kernels that neither bandwidth nor compute
    explains (gaps between launches, small kernels that were tuned for another vendor, or a compiler that fuses a whole
    layer); ``seq``: factor on what a decoding sequence costs (kernels whose time grows with the sequences: sampling,
    attention without shared heads); ``launch_layer_s``: host time to launch a layer's kernels that no graph saves.
    """

    read: float
    kv: float
    gemm: float
    attention: float
    sigma: float
    host: float = 1.0
    kernel: float = 1.0
    seq: float = 1.0
    launch_layer_s: float = 1e-7


@dataclass(frozen=True, slots=True)
class Link:
    """One all-reduce among ``n`` cards: ``latency_s + hop_s * n + 2 (n-1)/n * bytes / (bandwidth * share)``.

    ``small_share``: the share that messages of decoding sequences get (up to some MB, where a ring or a
    one-shot kernel is still far from the link's bandwidth); ``share``: a prompt's.
    """

    latency_s: float
    hop_s: float
    share: float
    small_share: float = 0.35


@dataclass(frozen=True, slots=True)
class Precision:
    """How weights of one precision are stored and computed with.

    ``bytes_per_param`` includes group scales; ``peaks``: the sheet's entries to compute with, best
    first; ``read_gain``, ``gemm_gain``: factors on the family's shares (dequantisation, kernels);
    ``expert_gain``: the same for routed experts, on top of the engine's; ``layer_s``: kernels a layer
    needs for this precision (activations quantised before each GEMM); ``launch_gain``: factor on an eager engine's
    launches (unpacking kernels of their own).
    """

    bytes_per_param: float
    peaks: tuple[str, ...]
    read_gain: float
    gemm_gain: float
    expert_gain: float = 1.0
    layer_s: float = 1e-6
    launch_gain: float = 1.0


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What one combination of engine, card family, link and precision gets of the roofline, and adds.

    Shares of the sheet: ``read``, ``kv``, ``gemm``, ``attention``, ``link_share``,
    ``small_link_share`` and, of routed experts, ``experts_read`` and ``experts_gemm``. Seconds added:
    ``step_s``, ``layer_s``, ``launch_layer_s``, ``expert_launch_s`` and ``eager_layer_s`` (overlapped),
    ``expert_layer_s``, ``latent_layer_s``, ``linear_layer_s``, ``seq_s``, ``stream_s`` (overlapped),
    ``first_token_s``, ``first_expert_layer_s`` and, an all-reduce, ``reduce_s`` plus
    ``reduce_card_s`` a card. Arrays over many work as well as floats.
    """

    read: float
    experts_read: float
    kv: float
    gemm: float
    experts_gemm: float
    attention: float
    link_share: float
    small_link_share: float
    step_s: float
    layer_s: float
    launch_layer_s: float
    expert_layer_s: float
    seq_s: float
    stream_s: float
    eager_layer_s: float
    latent_layer_s: float
    linear_layer_s: float
    expert_launch_s: float
    first_token_s: float
    first_expert_layer_s: float
    reduce_s: float
    reduce_card_s: float
    sigma: float


def _share(product: Number) -> Any:
    """No more than the sheet (a float, or an array element by element)."""
    return min(product, 1.0) if isinstance(product, float) else np.minimum(product, 1.0)


def compose(costs: EngineEfficiency, shares: Family, wire: Link, form: Precision) -> Efficiency:
    """Rows put together by multiplication; a share never exceeds the sheet. Rows of arrays give arrays."""
    read = _share(shares.read * form.read_gain * costs.read_gain)
    gemm = _share(shares.gemm * form.gemm_gain * costs.gemm_gain)
    return Efficiency(
        read=read,
        experts_read=_share(read * costs.expert_gain * form.expert_gain),
        kv=_share(shares.kv * costs.read_gain),
        gemm=gemm,
        experts_gemm=_share(gemm * costs.expert_gemm_gain * form.expert_gain),
        attention=_share(shares.attention * costs.gemm_gain),
        link_share=wire.share,
        small_link_share=wire.small_share,
        step_s=costs.step_s * shares.host,
        layer_s=(costs.layer_s + form.layer_s * costs.quantise_gain) * shares.kernel,
        launch_layer_s=costs.launch_layer_s * shares.host * form.launch_gain + shares.launch_layer_s,
        expert_layer_s=costs.expert_layer_s * shares.kernel,
        seq_s=costs.seq_s * shares.host * shares.seq,
        stream_s=costs.stream_s * shares.host,
        latent_layer_s=costs.latent_layer_s * shares.kernel,
        linear_layer_s=costs.linear_layer_s * shares.kernel,
        expert_launch_s=costs.expert_launch_s * shares.host,
        eager_layer_s=costs.eager_layer_s * shares.host,
        first_token_s=costs.first_token_s,
        first_expert_layer_s=costs.first_expert_layer_s,
        reduce_s=wire.latency_s * costs.reduce_gain,
        reduce_card_s=wire.hop_s * costs.reduce_gain,
        sigma=float(np.hypot(costs.sigma, shares.sigma)),
    )
