"""Requests to a Kubernetes API server: who is shown, what is trusted, every failure bounded, with its reason."""

import ssl
from pathlib import Path

import pytest
import trustme

from router.core.errors import KubernetesError
from router.kubernetes.access import Access, in_pod
from router.kubernetes.client import KubernetesClient
from tests.kubernetes.fake_api import FakeApi
from tests.pages import Pages

DEPLOYMENT = "/apis/apps/v1/namespaces/llm/deployments/small"


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """The folder of a service account, as the kubelet mounts it."""
    for name, text in (("token", "first\n"), ("namespace", "llm")):
        (tmp_path / name).write_text(text)
    return tmp_path


async def test_in_a_pod_the_service_account_is_shown_and_its_authority_trusted(account: Path) -> None:
    """A token that the kubelet has replaced is the one that is sent next."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(account / "ca.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with FakeApi("first", context) as api:
        api.add(DEPLOYMENT, 2)
        environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api.port)}
        access = in_pod(environment, account)
        assert access.namespace == "llm"
        client = KubernetesClient(access, 5.0)
        assert (await client.get(DEPLOYMENT))["spec"] == {"replicas": 2}
        api.token = "second"
        with pytest.raises(KubernetesError, match="401 Unauthorized"):
            await client.get(DEPLOYMENT)
        (account / "token").write_text("second")
        assert await client.get(DEPLOYMENT)
        await client.close()
        (account / "ca.crt").unlink()
        other = KubernetesClient(in_pod(environment, account), 5.0)
        with pytest.raises(KubernetesError, match="ConnectError"):
            await other.get(DEPLOYMENT)
        await other.close()


def test_outside_a_pod_the_url_has_to_be_given(account: Path) -> None:
    with pytest.raises(ValueError, match="in no pod; give url"):
        in_pod({}, account)
    (account / "token").unlink()
    with pytest.raises(ValueError, match="no service account token"):
        in_pod({"KUBERNETES_SERVICE_HOST": "h", "KUBERNETES_SERVICE_PORT": "443"}, account)


def test_an_address_of_version_6_is_put_in_brackets(account: Path) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    assert in_pod(environment, account).url == "https://[fd00::1]:443"


def test_an_authority_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ca\.crt: cannot be used as the authority"):
        KubernetesClient(Access("https://h:1", ca=tmp_path / "ca.crt"), 5.0)


async def test_every_failure_is_an_error_with_its_reason() -> None:
    """An object that is not there, a server that is silent, one that is none, nobody."""
    async with FakeApi() as api:
        client = KubernetesClient(Access(api.url), 5.0)
        with pytest.raises(KubernetesError, match=r"404 .*not found") as found:
            await client.get(DEPLOYMENT)
        assert found.value.answer == 404
        api.silent, client._timeout_s = True, 0.01  # on a connection that is there
        with pytest.raises(KubernetesError, match="Timeout"):
            await client.get(DEPLOYMENT)
        client._timeout_s = 5.0
    with pytest.raises(KubernetesError, match=r"ConnectError|disconnected"):
        await client.get(DEPLOYMENT)
    await client.close()
    for body in (b"<html>", b"[]", b"[" * 100_000):
        async with Pages({DEPLOYMENT: (200, body)}) as pages:
            client = KubernetesClient(Access(pages.url), 5.0)
            with pytest.raises(KubernetesError, match="200"):
                await client.get(DEPLOYMENT)
            await client.close()
