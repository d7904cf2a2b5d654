"""Arrays that policies are shown and cannot write.

A policy is a value: what it is shown is the ledger's own memory, or it would cost a copy at each decision. So the
ledger and the belief keep a second, read-only view of their columns, and a slice of a read-only array is read-only.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Number = TypeVar("_Number", bound=np.generic)


def view_of(columns: NDArray[_Number]) -> NDArray[_Number]:
    """The same memory, read-only for good: its buffer is, so that numpy refuses ``setflags(write=True)`` too."""
    view: NDArray[_Number] = np.asarray(columns.data.toreadonly())
    return view


def frozen(array: NDArray[_Number]) -> NDArray[_Number]:
    """The same array, from now on not to be written."""
    array.setflags(write=False)
    return array
