"""Models on the same replicas get one number."""

from router.autoscaler.sharing import shared
from router.targets import Advice
from tests.autoscaler.worlds import plan


def test_models_on_the_same_replicas_get_what_the_neediest_wants() -> None:
    """One number after the other would take away and add in every round."""
    m, n = Advice("m", "big", 2, 1, "few"), Advice("n", "big", 5, 1, "many")
    few, many = shared(plan(), [m, n])
    assert (few.replicas, few.why) == (5, "few; n on the same replicas needs 5")
    assert many == n


def test_a_variant_of_the_same_name_for_another_model_is_not_shared() -> None:
    """Replicas of ``small`` serve m alone."""
    apart = [Advice("m", "small", 2, 1, "few"), Advice("n", "small", 5, 1, "many")]
    assert shared(plan(), apart) == apart
