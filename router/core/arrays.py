"""The types of the core's arrays, and arrays that policies read and cannot write.

A policy is a pure value, and what it reads is the ledger's own memory: a copy at each decision would cost too much. So
the ledger and the belief keep a second, read-only view of their columns, and a slice of a read-only array is read-only.
Must not depend on any other module of the core.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Slots = NDArray[np.intp]
Bools = NDArray[np.bool_]
_Number = TypeVar("_Number", bound=np.generic)


def view_of(columns: NDArray[_Number]) -> NDArray[_Number]:
    """The same memory, read-only for good: its buffer is, so that numpy refuses ``setflags(write=True)`` too."""
    view: NDArray[_Number] = np.asarray(columns.data.toreadonly())
    return view


def frozen(array: NDArray[_Number]) -> NDArray[_Number]:
    """The same array, from now on not to be written."""
    array.setflags(write=False)
    return array
