"""HAProxy: the servers of ``backend`` and ``listen`` sections, and the times and limits around them."""

import re
import shlex
from types import MappingProxyType
from typing import Final

from router.core.errors import ConfigError
from router.importing.draft import Draft
from router.importing.entry import Entry
from router.importing.format import Format, put_number, route, without
from router.importing.proxies import address_url, put_time

_SECTIONS: Final = frozenset(
    ("global", "defaults", "frontend", "backend", "listen", "resolvers", "peers", "userlist", "cache", "mailers")
)
_SERVERS: Final = ("backend", "listen")
_VALUED: Final = frozenset(
    (
        "alpn", "ca-file", "cookie", "crt", "downinter", "error-limit", "fall", "fastinter", "id", "init-addr", "inter",
        "maxconn", "minconn", "observe", "on-error", "pool-max-conn", "port", "proto", "resolve-prefer", "resolvers",
        "rise", "slowstart", "sni", "verify", "weight",
    )
)  # fmt: skip
_ROUTINGS: Final = MappingProxyType(
    {
        "roundrobin": "weighted_round_robin",
        "static-rr": "weighted_round_robin",
        "leastconn": "least_request",
        "random": "power_of_two",
        "source": "session_affinity",
        "uri": "session_affinity",
        "hash": "session_affinity",
        "first": "pack_load",
    }
)
_TIMES: Final = MappingProxyType(
    {
        "server": ("upstream", "stall_s"),
        "connect": ("upstream", "connect_s"),
        "client": ("upstream", "reader_s"),
        "http-keep-alive": ("listen", "keep_alive_s"),
    }
)
_REASONS: Final = MappingProxyType(
    {
        "bind": "for TLS write listen.tls: as it is, this config serves HTTP on that port",
        "check": without("engines are always checked"),
        "inter": "write scrape.period_s",
        "fall": "write scrape.down_after",
        "rise": without("the first good check brings a backend up"),
        "maxconn": "write seqs_max of that backend, or listen.connections_max",
        "backup": without("every backend that meets the SLO is a candidate; see weight"),
        "httpchk": without("the path follows from the engine; see health_url of a backend"),
        "http-check": without("the path follows from the engine; see health_url of a backend"),
        "crt": "write client_cert of that backend, or listen.tls.cert",
        "ca-file": "write ca of that backend",
        "verify": "write ca of that backend",
        "cookie": without("see the policy session_affinity"),
        "server-template": without("see discover, dns"),
        "stats": without("see /metrics and the page"),
        "nbthread": "write listen.workers",
        "log": without("the log goes to standard error; see log.access"),
        "mode": without("HTTP is what is served"),
        "option": without("replies are streamed as they come; see listen and upstream"),
        "slowstart": without("a backend of which nothing is known starts slowly by itself"),
        "use_backend": without("a request goes to a backend that serves its model"),
        "default_backend": without("a request goes to a backend that serves its model"),
        "queue": without("see hold_s_max of the policy `deadline`"),
        "http-request": without("see listen.request_s"),
        "tunnel": without("replies are streamed; see upstream.stall_s"),
    }
)


def _recognises(text: str) -> bool:
    return (
        re.search(r"(?m)^(?:backend|listen)[ \t]+\S+", text) is not None
        and re.search(r"(?m)^[ \t]+server(?:-template)?[ \t]+\S+[ \t]+\S+", text) is not None
    )


def _read(text: str, name: str) -> list[Entry]:
    """Sections with their lines; the words of a line are its parts, options with a value under their names."""
    tree = Entry(1)
    section = tree
    for number, line in enumerate(text.split("\n"), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ConfigError([f"{name}:{number}: {error}"]) from None
        if not words:
            continue
        if words[0] in _SECTIONS:
            section = tree.add(words[0], number)
            for index, word in enumerate(words[1:]):
                section.add(index, number, word).used = True
        else:
            _line(section, words, number)
    return [tree]


def _line(section: Entry, words: list[str], number: int) -> None:
    made = section.add(words[0], number)
    rest, index = words[1:], 0
    while index < len(rest):
        word = rest[index]
        if words[0] == "server" and index > 1 and word in _VALUED and index + 1 < len(rest):
            made.add(word, number, rest[index + 1])
            index += 1
        elif words[0] == "server" and index > 1:
            made.add(word, number, True)
        else:
            made.add(index, number, word)
        index += 1


def _take(trees: list[Entry], draft: Draft) -> None:
    for section in (part for tree in trees for part in tree.parts):
        for directive in section.parts:
            if section.key in _SERVERS and directive.key == "server":
                _server(directive, draft)
            elif section.key in _SERVERS and directive.key == "balance":
                directive.used = True
                method = directive.get(0)
                route(draft, method or directive, _ROUTINGS.get(method.text.partition("(")[0] if method else "", ""))
            else:
                _setting(directive, draft)
        _spread(section)


def _spread(section: Entry) -> None:
    """The reason of ``timeout queue`` and ``option httpchk`` is that of their second word."""
    for directive in section.parts:
        word = directive.get(0)
        if directive.key in {"timeout", "option"} and word is not None and not directive.used:
            for part in directive.parts[1:]:
                part.used = True
            word.path = (*directive.path, word.text)


def _setting(directive: Entry, draft: Draft) -> None:
    """A time, a limit, or where clients come in."""
    words = [part.text for part in directive.parts]
    match directive.key, words:
        case "timeout", [kind, time, *_] if kind in _TIMES:
            put_time(draft, directive, time, "ms", *_TIMES[kind])
        case "retries", [_]:
            put_number(draft, directive.get(0), "policy", "limits", "attempts_max", plus=1, whole=True)
        case "bind", [address, *_]:
            _bind(directive, address, draft)
        case _:
            pass  # it stays unused, and is named


def _bind(directive: Entry, address: str, draft: Draft) -> None:
    host, _, port = address.rpartition(":")
    if port.isascii() and port.isdecimal():
        directive.parts[0].used = True
        draft.put(directive, int(port[:9]), "listen", "port")
        draft.put(directive, "0.0.0.0" if host in {"", "*"} else host.strip("[]"), "listen", "host")


def _server(directive: Entry, draft: Draft) -> None:
    name, address = directive.get(0), directive.get(1)
    tls = directive.get("ssl")
    url = address_url(address.text, "https" if tls is not None else "http") if address is not None else None
    if name is None or address is None or url is None:
        draft.note(directive, "left out: expected a name and an address such as 10.0.0.7:8000")
        return
    if directive.get("disabled") is not None:
        draft.note(directive, "left out: it is disabled")
        return
    for known in (name, address, tls):
        if known is not None:
            known.used = True
    weight = directive.take_positive("weight")
    facts = {} if weight is None else {"weight": weight}
    draft.backend(address, url, facts, name.text)


FORMAT: Final = Format("haproxy", "backend sections of HAProxy", _recognises, _read, _take, _REASONS)
