"""Where a Kubernetes API server is and how this process identifies itself: in a pod, or at a URL that a config names.

Must not depend on the requests that are sent. The token of a service account is replaced by the kubelet about every
hour, so it is read again for each request.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router.urls import host_port

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_BYTES_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Access:
    """``token_file``: with the bearer token; None: ``token`` is it, empty: none is sent (``kubectl proxy``). ``ca``:
    the authority of the server's certificate, None: those of this machine. ``namespace``: used where none is given.
    """

    url: str
    token_file: Path | None = None
    token: str = ""
    ca: Path | None = None
    namespace: str = "default"

    def bearer(self) -> str:
        """The token as it is now, empty for none. Raises OSError when its file cannot be read."""
        if self.token_file is None:
            return self.token
        with self.token_file.open(encoding="ascii") as file:
            return file.read(_TOKEN_BYTES_MAX).strip()


def in_pod(environment: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> Access:
    """The access of the pod that this process runs in, by its service account. Raises ValueError outside one."""
    host, port = (environment.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    if not host or not port:
        raise ValueError(
            "KUBERNETES_SERVICE_HOST is not set: this process is in no pod; give url, as of `kubectl proxy`"
        )
    token, authority, namespace = (folder / name for name in ("token", "ca.crt", "namespace"))
    if not token.is_file():
        raise ValueError(f"{token} is missing: the pod has no service account token (automountServiceAccountToken)")
    return Access(
        url=f"https://{host_port(host, port)}",
        token_file=token,
        ca=authority if authority.is_file() else None,
        namespace=namespace.read_text(encoding="ascii").strip() if namespace.is_file() else "default",
    )
