"""One wording for names that are not known."""

import pytest

from router.spelling import suggestion


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("prot", ("host", "port"), "did you mean 'port'?"),
        ("zzz", ("host", "port"), "expected one of host, port"),
        ("zzz", (), "there is none"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_or_with_all(word, known, said):
    """The nearest one where there is one."""
    assert suggestion(word, known) == said


def test_several_near_names_are_listed_nearest_first():
    """Where names are short and alike, one suggestion would often be the wrong one."""
    assert suggestion("l21", ("h100", "l20", "l2"), count=4, cutoff=0.3) == "did you mean 'l2' or 'l20'?"
