"""The errors are on their two pages, and those that end a client's call have an HTTP status."""

import pkgutil
from importlib import import_module

import pytest

import policies
import router
import simulator
from router.core.errors import HeadroomError, Reason, status_of

PAGES = ("router.core.errors", "simulator.errors")
# They end the reading of a command line, which must not wait for the core.
ELSEWHERE = {("router.arguments", "Stop"), ("router.arguments", "WrongUse")}
STATUS = {  # of what can end a client's call, an admin's included; those of a request are per instance
    "Rejected": 400,
    "UnsupportedFeature": 400,
    "ConfigError": 422,
    "NotValidated": 422,
    "UnknownCard": 422,
    "UnknownModel": 422,
    "UnknownEngine": 422,
    "DoesNotFit": 422,
    "UnusableCertificate": 422,
    "PolicyRejected": 422,
    "StoreGone": 503,
    "Busy": 503,
    "Refused": 400,
}


def modules():
    """Every module of the project's packages."""
    for package in (router, simulator, policies):
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield import_module(found.name)


def defined_errors():
    """The exception classes of the project, by the module that defines them."""
    for module in modules():
        for thing in vars(module).values():
            if not (isinstance(thing, type) and issubclass(thing, BaseException)):
                continue
            if thing.__module__ == module.__name__ and (module.__name__, thing.__name__) not in ELSEWHERE:
                yield module.__name__, thing


def test_every_error_is_defined_on_its_page_and_has_the_common_base():
    """Whoever looks for an error finds it in one place."""
    found = list(defined_errors())
    assert {module for module, _ in found} == set(PAGES)
    assert [error for _, error in found if not issubclass(error, HeadroomError)] == []


def test_an_error_that_ends_a_clients_call_has_an_http_status_and_no_other_has():
    """A new error has to be entered here, so that its author decides what a client sees."""
    found = {error.__name__: error.status for _, error in defined_errors() if error.status is not None}
    assert found == STATUS


def test_every_error_says_in_its_docstring_what_it_means():
    """The page is the reference."""
    assert [error for _, error in defined_errors() if not error.__doc__] == []


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_for_a_refusal_has_a_status(reason):
    """A refusal is answered with a client's or a server's error."""
    assert 400 <= status_of(reason) < 600
