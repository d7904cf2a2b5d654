"""nginx: the ``upstream`` blocks of a config, and what the servers in front of them set.

Directives are read as nginx reads them (words, quotes, blocks). ``include`` is not followed: its files are named.
"""

import re
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final, NamedTuple

from router.core.errors import ConfigError
from router.importing.draft import Draft
from router.importing.entry import Entry
from router.importing.format import Format, put_number, route, without
from router.importing.proxies import address_url, put_time, size_bytes
from router.importing.yaml_source import SETTINGS_MOST

_DEEP_MOST: Final = 50
_TOKEN: Final = re.compile(
    r"""\s+|\#[^\n]*                          # nothing, a comment
    |"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'    # quoted
    |[{};]
    |(?:\\.|\$\{[^}]*\}|[^\s{};"'\\])+|.   # a word; else a character that begins none""",
    re.DOTALL | re.VERBOSE,
)
_ROUTINGS: Final = MappingProxyType(
    {
        "least_conn": "least_request",
        "least_time": "least_request",
        "ip_hash": "session_affinity",
        "hash": "session_affinity",
        "random": "power_of_two",
    }
)
_TIMES: Final = MappingProxyType(
    {"proxy_read_timeout": "stall_s", "proxy_connect_timeout": "connect_s", "send_timeout": "reader_s"}
)
_REASONS: Final = MappingProxyType(
    {
        "listen": "for TLS write listen.tls: as it is, this config serves HTTP on that port",
        "max_fails": "write policy.limits.failures_max",
        "fail_timeout": "write policy.limits.eject_s",
        "max_conns": "write seqs_max of that backend: how many sequences its engine runs at once",
        "backup": without("every backend that meets the SLO is a candidate; see weight"),
        "slow_start": without("a backend of which nothing is known starts slowly by itself"),
        "resolve": without("see discover, dns"),
        "zone": without("workers share what they know by themselves"),
        "include": "import that file too",
        "ssl_certificate": "write listen.tls.cert",
        "ssl_certificate_key": "write listen.tls.key",
        "proxy_buffering": without("replies are streamed as they come"),
        "proxy_cache": without("replies are not cached; engines cache prefixes"),
        "proxy_http_version": without("engines are reached over HTTP/1.1"),
        "proxy_set_header": without("headers are passed on; hop-by-hop headers are dropped"),
        "access_log": "write log.access and log.access_file",
        "error_log": without("the log goes to standard error; see log.format"),
        "log_format": without("see log.access"),
        "worker_processes": "write listen.workers",
        "worker_connections": "write listen.connections_max",
        "limit_req": without("see quotas"),
        "limit_req_zone": without("see quotas"),
        "proxy_next_upstream": without("see policy.limits.attempts_max; nothing is retried after the first token"),
    }
)


class _Token(NamedTuple):
    text: str
    line: int
    quoted: bool


def _recognises(text: str) -> bool:
    return re.search(r"(?m)^[^#\n]*\bupstream\s+[^\s{]+\s*\{", text) is not None


# ---- directives --------------------------------------------------------------------


def _read(text: str, name: str) -> list[Entry]:
    """The tree of blocks. The words of a directive are its parts: ``weight=3`` under its key, others by their place."""
    tree = Entry(1)
    blocks, words = [tree], list[_Token]()
    for count, token in enumerate(_tokens(text)):
        if token.quoted or token.text not in ("{", "}", ";"):
            words.append(token)
            continue
        made = _directive(blocks[-1], words) if words else None
        words = []
        _nest(blocks, made, token.text)
        if not blocks or len(blocks) > _DEEP_MOST or count > 10 * SETTINGS_MOST:
            raise ConfigError([f"{name}:{token.line}: unexpected {token.text}: no block is open, or too many are"])
    if len(blocks) > 1 or words:
        line = words[0].line if words else blocks[-1].line
        raise ConfigError([f"{name}:{line}: is not closed"])
    return [tree]


def _nest(blocks: list[Entry], made: Entry | None, token: str) -> None:
    """Open a block, or close the last one; one without a name is part of the block around it."""
    if token == "{":
        blocks.append(made or blocks[-1])
    elif token == "}":
        blocks.pop()


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for found in _TOKEN.finditer(text):
        word = found[0]
        if not word.isspace() and not word.startswith("#"):
            quoted = len(word) > 1 and word[0] in "\"'"
            yield _Token(re.sub(r"\\(.)", r"\1", word[1:-1], flags=re.DOTALL) if quoted else word, line, quoted)
        line += word.count("\n")


def _directive(block: Entry, words: list[_Token]) -> Entry:
    first = words[0]
    made = block.add(first.text, first.line)
    for index, word in enumerate(words[1:]):
        key, equals, value = word.text.partition("=")
        if equals and key.isidentifier():
            made.add(key, word.line, value)
        elif first.text == "server" and index > 0:
            made.add(word.text, word.line, True)
        else:
            made.add(index, word.line, word.text)
    return made


def _named(block: Entry, *names: str) -> Iterator[Entry]:
    """Directives of these names in the block and in all below it."""
    for part in block.parts:
        if part.key in names:
            yield part
        yield from _named(part, *names)


def _argument(directive: Entry) -> str:
    found = directive.get(0)
    return found.text if found is not None else ""


# ---- what they stand for -------------------------------------------------------------


def _take(trees: list[Entry], draft: Draft) -> None:
    for tree in trees:
        schemes = {}
        for passed in list(_named(tree, "proxy_pass")):
            scheme, _, rest = _argument(passed).partition("://")
            schemes[rest.split("/")[0]] = scheme
        upstreams = list(_named(tree, "upstream"))
        for upstream in upstreams:
            _upstream(upstream, schemes.get(_argument(upstream), "http"), draft)
        for passed in list(_named(tree, "proxy_pass")):
            if _argument(passed).partition("://")[2].split("/")[0] in {_argument(each) for each in upstreams}:
                passed.used = True
        for block in list(_named(tree, "location")):
            for word in block.parts:
                word.used = word.used or isinstance(word.key, int)
        _front(tree, draft)


def _upstream(block: Entry, scheme: str, draft: Draft) -> None:
    block.take(0)
    for part in block.parts:
        match part.key:
            case "server":
                _server(part, scheme, draft)
            case "keepalive":
                put_number(draft, part.get(0), "upstream", "idle_max", whole=True)
            case "keepalive_timeout":
                put_time(draft, part, _argument(part), "s", "upstream", "idle_s")
            case key if key in _ROUTINGS:
                part.used = True
                route(draft, Entry(part.line, part.path), _ROUTINGS[str(key)])
            case _:
                pass  # it stays unused, and is named


def _server(part: Entry, scheme: str, draft: Draft) -> None:
    """A server of an upstream; nginx weighs them evenly where it has no weight."""
    address = part.get(0)
    url = address_url(address.text, scheme) if address is not None else None
    if address is None or url is None:
        draft.note(part, "left out: expected an address such as 10.0.0.7:8000")
        return
    if part.get("down") is not None:
        draft.note(part, "left out: it is marked down")
        return
    address.used = True
    weight = part.take_positive("weight")
    facts = {} if weight is None else {"weight": weight}
    draft.backend(address, url, facts)


def _front(tree: Entry, draft: Draft) -> None:
    """What the servers in front set: where clients come in, sizes and times."""
    for listen in list(_named(tree, "listen")):
        address = listen.get(0)
        port = address.text.rpartition(":")[2] if address is not None else ""
        if address is not None and port.isascii() and port.isdecimal():
            address.used = True
            draft.put(address, int(port[:9]), "listen", "port")
    for size in list(_named(tree, "client_max_body_size")):
        number = size_bytes(_argument(size))
        if number is not None:
            size.used = True
            draft.put(size, number, "listen", "body_bytes_max")
    for name, key in _TIMES.items():
        for directive in list(_named(tree, name)):
            put_time(draft, directive, _argument(directive), "s", "upstream", key)


FORMAT: Final = Format("nginx", "upstream blocks of nginx", _recognises, _read, _take, _REASONS)
