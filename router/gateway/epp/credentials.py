"""What the picker shows to proxies over TLS: the certificate of the config, or one that is signed by itself.

The second is the convention of endpoint pickers: proxies encrypt without checking who answers. Certificate files that
change are read again.
"""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from router.config import settings

_log = logging.getLogger("headroom")
_VALID: Final = timedelta(days=3650)
_NAME: Final = "headroom-epp"


def self_signed() -> tuple[bytes, bytes]:
    """A key and its certificate, in PEM form."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME), x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret, certificate.public_bytes(Encoding.PEM)


def credentials(given: settings.Epp, folder: Path) -> grpc.ServerCredentials | None:
    """Those of the config, whose paths are relative to *folder*; None: no TLS. Raises OSError."""
    if not given.secure:
        return None
    if given.tls is None:
        return grpc.ssl_server_credentials([self_signed()])
    files = _Files(given.tls, folder)
    return grpc.dynamic_ssl_server_credentials(
        files.configuration(), files.changed, require_client_authentication=given.tls.client_ca is not None
    )


class _Files:
    """Certificate, key and authorities; gRPC's own threads call ``changed`` at each handshake."""

    def __init__(self, given: settings.ListenTls, folder: Path) -> None:
        self._paths = [folder / each for each in (given.key, given.cert, given.client_ca) if each is not None]
        self._seen = self._times()

    def _times(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in self._paths]

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """As the files are now."""
        key, chain, *authorities = [path.read_bytes() for path in self._paths]
        return grpc.ssl_server_certificate_configuration([(key, chain)], authorities[0] if authorities else None)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration; None: the files are those that were read."""
        try:
            times = self._times()
            if times == self._seen:
                return None
            new = self.configuration()
        except OSError as error:
            _log.error("epp.tls: %s; the certificate read before stays", error)
            return None
        self._seen = times
        return new
