"""The core's numeric loops as they run: C where that was built, else Python (``native.py``)."""

from typing import Final

from router.core import estimators, hashing, kernels
from router.core.native import extension, fastest

_KERNELS: Final = extension("router.core._kernels")
_ESTIMATORS: Final = extension("router.core._estimators")
_HASHING: Final = extension("router.core._hashing")

predicted = fastest(_KERNELS, kernels.predicted)
resident = fastest(_KERNELS, kernels.resident)
loads = fastest(_KERNELS, kernels.loads) if _KERNELS else kernels.loads  # which is no loop, but numpy's sums
prefill_rates = fastest(_KERNELS, kernels.prefill_rates)
tails = fastest(_KERNELS, kernels.tails)
in_time = fastest(_KERNELS, kernels.in_time)
at_rest = fastest(_KERNELS, kernels.at_rest)
expected = fastest(_KERNELS, kernels.expected)
lived = fastest(_KERNELS, kernels.lived)
widen = fastest(_ESTIMATORS, estimators.widen)
learn = fastest(_ESTIMATORS, estimators.learn)
spreads = fastest(_ESTIMATORS, estimators.spreads)
judge = fastest(_ESTIMATORS, estimators.judge)
chain = fastest(_HASHING, hashing.chain)
