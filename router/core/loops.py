"""The core's numeric loops as they run: C where that was built, else Python (``native.py``)."""

from typing import Final

from router.core import hashing, kernels, lessons
from router.core.native import extension, fastest

_KERNELS: Final = extension("router.core._kernels")
_LESSONS: Final = extension("router.core._lessons")
_HASHING: Final = extension("router.core._hashing")
IN_C: Final = None not in (_KERNELS, _LESSONS, _HASHING)

predicted = fastest(_KERNELS, kernels.predicted)
tails = fastest(_KERNELS, kernels.tails)
in_time = fastest(_KERNELS, kernels.in_time)
at_rest = fastest(_KERNELS, kernels.at_rest)
expected = fastest(_KERNELS, kernels.expected)
lived = fastest(_KERNELS, kernels.lived)
doubt = fastest(_LESSONS, lessons.doubt)
learn = fastest(_LESSONS, lessons.learn)
spreads = fastest(_LESSONS, lessons.spreads)
judge = fastest(_LESSONS, lessons.judge)
chain = fastest(_HASHING, hashing.chain)
