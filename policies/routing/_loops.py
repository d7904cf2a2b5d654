"""The loops of ``_headroom.py`` as they run: C where that was built, else Python (``router/core/native.py``)."""

from typing import Final

from policies.routing import _headroom
from router.core.native import extension, fastest

_MADE: Final = extension("policies.routing._headroom_loops")

weigh = fastest(_MADE, _headroom.weigh)
longest_reply = fastest(_MADE, _headroom.longest_reply)
room_in_s = fastest(_MADE, _headroom.room_in_s)
most_gained = fastest(_MADE, _headroom.most_gained)
