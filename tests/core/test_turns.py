"""A hold that is alone: no request behind it is sent first."""

from dataclasses import dataclass

from router.core import Dispatch, Hold, Slo
from tests.fakes import backend, core, request, sent


@dataclass(frozen=True)
class Patient:
    """Holds class "patient" until 5 s, alone or not; sends all others at once."""

    alone: bool

    def choose(self, request, fleet, forecast, rng):
        """By class and time alone."""
        if request.slo_class == "patient" and fleet.now_s < 5.0:
            return Hold(5.0, "not yet", self.alone)
        return Dispatch(int(fleet.slots[0]), "now")


def after_a_patient_one(*, alone):
    """A core that holds a patient request, and what it answers to another with an SLO of its own."""
    it = core(backend("a"))
    it.adopt(Patient(alone), it.admission)
    assert it.arrived(request("patient", slo_class="patient"), 0.0) == ()
    return it, it.arrived(request("other", arrived_s=1.0, slo=Slo(ttft_s=20.0)), 1.0)


def test_one_class_that_waits_does_not_hold_up_another():
    """The new request is decided and sent."""
    _, answer = after_a_patient_one(alone=False)
    assert sent(answer).request_id == "other"


def test_a_hold_that_is_alone_goes_before_all_that_come_after_it():
    """The newcomer waits, whatever is answered about it; when the one whose turn it is was sent, it follows."""
    it, answer = after_a_patient_one(alone=True)
    assert answer == ()
    assert [c.request_id for c in it.ticked(5.0)] == ["patient", "other"]
