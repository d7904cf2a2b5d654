"""A Kubernetes API server on a real socket, as far as Headroom uses one.

It behaves as the real one does where that matters here: bearer tokens (401), the rights of a Role (403), unknown
objects (404), ``resourceVersion`` (409, and 422 where a Lease is written without), content types of patches (415;
strategic ones for built-in kinds alone), the scale subresource, ``Status`` objects as errors. Pods become ready only
where a test has it so.
"""

import asyncio
import json
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from tests.http_server import HttpServer, Received, send

MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"
VERBS = {"GET": "get", "PATCH": "patch", "PUT": "update", "POST": "create"}
Answer = tuple[int, dict[str, Any]]


class FakeApi(HttpServer):
    """Objects by path. ``rules``: of a Role, None: everything is allowed; ``before_write``: called before each write,
    as another client's write would come in between; ``log``: method and path of each request.
    """

    def __init__(self, token: str = "", tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self.token = token
        self.objects: dict[str, dict[str, Any]] = {}
        self.rules: Sequence[dict[str, Any]] | None = None
        self.before_write: Callable[[], None] = lambda: None
        self.log: list[tuple[str, str]] = []
        self.silent = False
        self._version = 100

    # -- what is in the cluster --------------------------------------------------------------------------------

    def add(self, path: str, replicas: int, ready: int | None = None) -> dict[str, Any]:
        """A workload at ``/apis/GROUP/VERSION/namespaces/NAMESPACE/PLURAL/NAME``."""
        name = path.rpartition("/")[2]
        status = {"replicas": replicas, "readyReplicas": replicas if ready is None else ready}
        made = {"metadata": {"name": name}, "spec": {"replicas": replicas}, "status": status}
        self.objects[path] = made
        self.touch(path)
        return made

    def touch(self, path: str) -> None:
        """The object there was written."""
        self._version += 1
        self.objects[path]["metadata"]["resourceVersion"] = str(self._version)

    def set_replicas(self, path: str, replicas: int) -> None:
        """Another client scales it."""
        self.objects[path]["spec"]["replicas"] = replicas
        self.touch(path)

    def writes(self) -> list[tuple[str, str]]:
        return [(method, path) for method, path in self.log if method != "GET"]

    # -- requests ------------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        if not self._allowed(method, path):
            return _status(403, f'forbidden: cannot {VERBS[method]} "{path}"')
        if method == "GET":
            return self._get(path)
        try:
            given = json.loads(body)
        except ValueError as error:
            return _status(400, f"error decoding: {error}")
        self.before_write()
        return {"PATCH": self._patch, "PUT": self._put, "POST": self._post}[method](path, given, headers)

    def _allowed(self, method: str, path: str) -> bool:
        if self.rules is None:
            return True
        parts = path.strip("/").split("/")
        group = parts[1] if parts[0] == "apis" else ""
        rest = parts[parts.index("namespaces") + 2 :]
        resource, name = rest[0], rest[1] if len(rest) > 1 else ""
        resource += "/scale" if rest[2:] == ["scale"] else ""
        return any(
            group in rule["apiGroups"]
            and resource in rule["resources"]
            and VERBS[method] in rule["verbs"]
            and ("resourceNames" not in rule or name in rule["resourceNames"])
            for rule in self.rules
        )

    def _get(self, path: str) -> Answer:
        if path.endswith("/scale"):
            found = self.objects.get(path.removesuffix("/scale"))
            return (200, _scale(found)) if found and "replicas" in found["spec"] else _status(404, f"{path} not found")
        return (200, self.objects[path]) if path in self.objects else _status(404, f"{path} not found")

    def _patch(self, path: str, given: dict[str, Any], headers: dict[str, str]) -> Answer:
        kind = headers.get("content-type", "")
        builtin = path.startswith("/apis/apps/")
        if kind != MERGE and not (kind == STRATEGIC and builtin):
            return _status(
                415, f"the body of the request was in an unknown format - accepted media types include: {MERGE}"
            )
        whole = path.removesuffix("/scale")
        if not path.endswith("/scale") or whole not in self.objects:
            return _status(404, f"{path} not found")
        found = self.objects[whole]
        version = given.get("metadata", {}).get("resourceVersion")
        if version is not None and version != found["metadata"]["resourceVersion"]:
            return _status(
                409, "the object has been modified; please apply your changes to the latest version and try again"
            )
        replicas = given["spec"]["replicas"]
        if replicas < 0:
            return _status(422, "spec.replicas: Invalid value: must be greater than or equal to 0")
        self.set_replicas(whole, replicas)
        return 200, _scale(found)

    def _put(self, path: str, given: dict[str, Any], _: dict[str, str]) -> Answer:
        if path not in self.objects:
            return _status(404, f"{path} not found")
        metadata = given.get("metadata", {})
        if metadata.get("name") != path.rpartition("/")[2]:
            return _status(400, "the name of the object does not match the name on the URL")
        if "resourceVersion" not in metadata:
            return _status(422, "metadata.resourceVersion: Invalid value: 0: must be specified for an update")
        if metadata["resourceVersion"] != self.objects[path]["metadata"]["resourceVersion"]:
            return _status(
                409, "the object has been modified; please apply your changes to the latest version and try again"
            )
        return self._stored(path, given, 200)

    def _post(self, path: str, given: dict[str, Any], _: dict[str, str]) -> Answer:
        whole = f"{path}/{given['metadata']['name']}"
        if whole in self.objects:
            return _status(409, f"{whole} already exists")
        return self._stored(whole, given, 201)

    def _stored(self, path: str, given: dict[str, Any], status: int) -> Answer:
        self.objects[path] = json.loads(json.dumps(given))
        self.touch(path)
        return status, self.objects[path]

    async def respond(self, request: Received, writer: asyncio.StreamWriter) -> None:
        self.log.append((request.method, request.target))
        if not self.silent:
            status, given = self.answer(request.method, request.target, request.headers, request.body)
            send(writer, status, json.dumps(given).encode())


def _scale(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": dict(found["metadata"]),
        "spec": {"replicas": found["spec"]["replicas"]} if found["spec"]["replicas"] else {},  # 0 is left out
        "status": {"replicas": found["status"]["replicas"], "selector": "app=x"},
    }


def _status(code: int, message: str) -> Answer:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
