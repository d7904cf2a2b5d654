"""References in a config: environment variables and files, and what is shown of them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config.settings import Settings
from router.config.text import document
from router.core.errors import ConfigError
from router.gateway.config.keys import digest
from router.gateway.config.plan import make
from router.gateway.rollout.differences import differences
from router.gateway.rollout.versions import Version
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import ScriptedEngine, stream
from tests.gateway.test_settings import BACKENDS, plan, refused
from tests.pages import Pages
from tests.waiting import until


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of this test."""
    monkeypatch.setenv("TEST_PORT", "9000")
    monkeypatch.setenv("TEST_EMPTY", "")
    monkeypatch.setenv("TEST_SECRET", "short")


def test_a_reference_is_its_value_wherever_a_value_stands() -> None:
    """Numbers, parts of words, lists; a default where the variable is not set or empty."""
    text = """
listen: {port: "${TEST_PORT}", host: "${TEST_NONE:-127.0.0.2}"}
upstream: {idle_max: "${TEST_EMPTY:-7}"}
state: {redis_url: "redis://h:${TEST_PORT}/${TEST_NONE:-}0"}
cors: {origins: ["https://${TEST_NONE:-app}.example"]}
"""
    settings = plan(BACKENDS + text).settings
    assert (settings.listen.port, settings.listen.host, settings.upstream.idle_max) == (9000, "127.0.0.2", 7)
    assert settings.state.redis_url == "redis://h:9000/0"
    assert settings.cors is not None
    assert settings.cors.origins == ("https://app.example",)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("${TEST_NONE}", "environment variable TEST_NONE is not set; ${TEST_NONE:-default} does without"),
        ("${TEST_EMPTY}", "environment variable TEST_EMPTY is not set"),
        ("${file:nowhere}", "nowhere cannot be read"),
        ("${file:.}", "cannot be read"),
        ("${not a name}", "expected ${NAME}, ${NAME:-default} or ${file:PATH}, not ${not a name}"),
        ("${}", "expected ${NAME}"),
    ],
)
def test_a_reference_that_leads_nowhere_is_a_fault_of_its_line(reference: str, said: str) -> None:
    """All of them at once."""
    lines = refused(BACKENDS + f'listen: {{host: "{reference}"}}\nadmin_key: {{key: "${{TEST_NONE}}"}}\n')
    assert len(lines) == 2
    assert lines[0].startswith("r.yaml:4: listen.host: ")
    assert said in lines[0]
    assert lines[1].startswith("r.yaml:5: admin_key.key: ")


def test_a_fault_shows_the_reference_and_not_the_secret() -> None:
    """What it stands for may be one."""
    (line,) = refused(BACKENDS + 'admin_key: {key: "${TEST_SECRET}"}\n')
    assert line.endswith("string should have at least 8 characters, not '${TEST_SECRET}'")
    (line,) = refused(BACKENDS + 'api_keys: {key: "${TEST_SECRET}", tenant: t}\n')
    assert line.endswith("not {'key': '${TEST_SECRET}', 'tenant': 't'}")
    (line,) = refused(BACKENDS + 'state: {redis_url: "redis://u:${TEST_SECRET}@h:no"}\n')
    assert "short" not in line


def test_the_content_of_a_file_is_without_its_last_line_break(tmp_path: Path) -> None:
    """As editors and secrets of Kubernetes write it; another content is another version of the config."""
    (tmp_path / "secret").write_text("a long secret\n", encoding="utf-8")
    text = document(BACKENDS + 'admin_key: {key: "${file:secret}"}\n', str(tmp_path / "r.yaml"))
    made = make(text.parse(Settings), text, {})
    assert made.admin_digest == digest("a long secret")
    (tmp_path / "secret").write_text("another secret", encoding="utf-8")
    assert make(text.parse(Settings), text, {}).version != made.version
    (tmp_path / "secret").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="secret cannot be read"):
        text.parse(Settings)


@given(words=st.text(alphabet="${}ab:-$"))
def test_text_without_a_reference_is_itself(words: str) -> None:
    """Dollars and braces by themselves mean nothing; two dollars and a brace are one and a brace."""
    text = document(f"a: {words!r}\nb: '${{TEST_PORT}}'", "r.yaml")
    data, faults = text.resolved({"TEST_PORT": "1"})
    if "${" not in words:
        assert (data, faults) == ({"a": text.data["a"], "b": "1"}, [])
    escaped = words.replace("$", "").replace("{", "$${")
    text = document(f"a: {escaped!r}", "r.yaml")
    assert text.resolved({})[0]["a"] == words.replace("$", "").replace("{", "${")


def test_differences_of_versions_show_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what they stood for."""
    old = Version("1", 0.0, "start", "listen: {host: a}")
    new = Version("2", 1.0, "reload", 'listen: {host: "${TEST_PORT}"}')
    assert differences(old, new)["keys"] == [{"key": "listen.host", "from": "a", "to": "${TEST_PORT}"}]


async def test_a_file_that_changes_or_comes_is_a_reload(tmp_path: Path) -> None:
    """A key is replaced by writing its file; one that is missing is waited for, and meanwhile the old one is valid."""
    secret = tmp_path / "keys" / "team-a"
    secret.parent.mkdir()
    secret.write_text("the first secret", encoding="utf-8")
    more = 'api_keys: [{tenant: team-a, key: "${file:keys/team-a}"}]\n'
    async with (
        ScriptedEngine([stream("a")]) as engine,
        Pages(dict(HEALTHY)) as pages,
        router(tmp_path / "r.yaml", config(backend("a", engine, pages), more=more)) as it,
    ):

        async def status(key: str) -> int:
            return (await it.chat(headers={"authorization": f"Bearer {key}"})).status_code

        assert await status("the first secret") == 200
        secret.unlink()
        assert (await it.client.post("/admin/reload")).status_code == 422
        assert await status("the first secret") == 200
        version = it.gateway.plan.version
        secret.write_text("the second secret\n", encoding="utf-8")
        await until(lambda: it.gateway.plan.version != version)
        assert [await status(f"the {which} secret") for which in ("first", "second")] == [401, 200]
