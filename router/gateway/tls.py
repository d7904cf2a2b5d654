"""TLS contexts from the certificates that the config names: for the port of the clients, and for each engine.

The files are read when a plan is made, so that a wrong one is a fault of the config like any other and is placed at its
key. Must not depend on sockets.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Final, NoReturn

from router.config import settings
from router.core.errors import UnusableCertificate

_ALPN: Final = ["http/1.1"]


@lru_cache(maxsize=1)
def trusted_by_machine() -> ssl.SSLContext:
    """How engines are reached over TLS whose backends name no certificates. One for all: reading what this machine
    trusts takes ten milliseconds and half a megabyte.
    """
    return ssl.create_default_context()


@dataclass(frozen=True, slots=True)
class TlsContext:
    """``server_name``: the name that an engine's certificate must bear, empty: the host's of its address.

    Equal when the contents of the files are: so a changed certificate is a changed target, and is used.
    """

    context: ssl.SSLContext = field(compare=False, repr=False)
    contents: str
    server_name: str = ""


def client_side(given: settings.Backend, folder: Path) -> TlsContext | None:
    """How an engine is reached over TLS; None where the config has nothing of its own to say about it.

    Raises UnusableCertificate. Paths are relative to *folder*.
    """
    if not (given.ca or given.client_cert or given.tls_server_name):
        return None
    files = _Files(folder)
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=files.authorities("ca", given.ca))
    context.set_alpn_protocols(_ALPN)
    if given.client_cert:
        files.load_pair(context, ("client_cert", given.client_cert), ("client_key", given.client_key))
    return TlsContext(context, files.digest, given.tls_server_name or "")


def check_redis(given: settings.Redis, folder: Path) -> None:
    """Whether the files for Redis can be used; its client reads them itself. Raises UnusableCertificate."""
    files = _Files(folder)
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=files.authorities("ca", given.ca))
    if given.client_cert:
        files.load_pair(context, ("client_cert", given.client_cert), ("client_key", given.client_key))


def server_side(given: settings.ListenTls, folder: Path) -> TlsContext:
    """How clients are answered over TLS. Raises UnusableCertificate. Paths are relative to *folder*."""
    files = _Files(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(_ALPN)
    files.load_pair(context, ("cert", given.cert), ("key", given.key))
    if given.client_ca:
        context.load_verify_locations(cadata=files.authorities("client_ca", given.client_ca))
        context.verify_mode = ssl.CERT_REQUIRED
    return TlsContext(context, files.digest)


def to_own_port(given: settings.ListenTls, folder: Path) -> ssl.SSLContext:
    """How a process of the same config reaches that port: it trusts the port's own certificate alone, whatever name is
    in it, and presents it where the port wants one. Raises UnusableCertificate.
    """
    files = _Files(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # no other certificate is trusted
    context.load_verify_locations(cadata=files.authorities("cert", given.cert))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    files.load_pair(context, ("cert", given.cert), ("key", given.key))
    return context


def paths(parsed: settings.Settings, folder: Path) -> tuple[Path, ...]:
    """All certificates and keys that a config names."""
    listen = parsed.listen.tls
    given = [listen.cert, listen.key, listen.client_ca] if listen else []
    for backend in (*parsed.backends, *(source.defaults for source in parsed.discover)):
        given += [backend.ca, backend.client_cert, backend.client_key]
    return tuple(dict.fromkeys(folder / path for path in given if path))


class _Files:
    """The files of one context, each read once to name what is wrong with it, and a digest of them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hash = sha256()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def authorities(self, key: str, path: Path | None) -> str | None:
        """The certificates in the file, as text; None for no file."""
        if path is None:
            return None
        text = self._read(key, path)
        with _placed(key, f"no certificates in PEM form in {self._folder / path}"):
            ssl.create_default_context(cadata=text)
        return text

    def load_pair(self, context: ssl.SSLContext, cert: tuple[str, Path], key: tuple[str, Path | None]) -> None:
        """Load a certificate and its key, which may be in the same file."""
        chain = self._folder / cert[1]
        self.authorities(*cert)
        key_name, key_path = key if key[1] is not None else (cert[0], cert[1])
        assert key_path is not None
        own = self._folder / key_path
        self._read(key_name, key_path)

        def no_password() -> NoReturn:  # without it OpenSSL prompts for one on the terminal
            raise UnusableCertificate(key_name, f"{own} is encrypted; expected a key without a password")

        try:
            context.load_cert_chain(chain, own, password=no_password)
        except ssl.SSLError as error:
            mismatched = error.reason == "KEY_VALUES_MISMATCH"
            why = f"{own} is not the key of the certificate {chain}" if mismatched else f"no private key in {own}"
            raise UnusableCertificate(key_name, why) from None

    def _read(self, key: str, path: Path) -> str:
        whole = self._folder / path
        try:
            data = whole.read_bytes()
        except OSError as error:
            raise UnusableCertificate(key, f"cannot read {whole}: {error.strerror}") from None
        self._hash.update(b"%d:" % len(data) + data)
        return data.decode("latin-1")


@contextmanager
def _placed(key: str, why: str) -> Iterator[None]:
    """An error of OpenSSL as a fault at *key*."""
    try:
        yield
    except (ssl.SSLError, ValueError):
        raise UnusableCertificate(key, why) from None
