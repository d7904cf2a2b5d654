"""API keys: from a file of their own, from the environment, made and hashed by a command; never shown."""

import io
import json
import sys
from pathlib import Path

import pytest
import yaml

from router.config.settings import Settings
from router.config.text import read
from router.core.errors import ConfigError, Rejected
from router.gateway.config.keys import digest
from router.gateway.config.plan import Plan, make
from router.gateway.protocols.ingress import Caller
from tests.commands import router_command
from tests.fakes_router import HEALTHY, backend, config, router
from tests.fakes_wire import ScriptedEngine, stream
from tests.gateway.test_settings import BACKENDS
from tests.pages import Pages
from tests.waiting import until, until_async

SECRET, OTHER = "secret-of-team-a", "secret-of-team-b"


def plan(folder: Path, keys: str, more: str = "", mode: int = 0o600, **environment: str) -> Plan:
    """The plan of a config whose key file has this text."""
    (folder / "keys.yaml").write_text(keys, encoding="utf-8")
    (folder / "keys.yaml").chmod(mode)
    (folder / "r.yaml").write_text(f"{BACKENDS}key_file: keys.yaml\n{more}", encoding="utf-8")
    text = read(folder / "r.yaml")
    return make(text.parse(Settings), text, environment)


def refused(folder: Path, keys: str, more: str = "", mode: int = 0o600) -> str:
    """The lines with which it is refused."""
    with pytest.raises(ConfigError) as caught:
        plan(folder, keys, more, mode)
    return "\n".join(caught.value.lines)


def test_a_key_file_adds_to_the_keys_of_the_config(tmp_path: Path) -> None:
    """Hashes, keys in clear, variables; each with class, quota and fallback."""
    keys = f"""keys:
  - {{sha256: {digest(SECRET)}, tenant: a, quota: {{requests_per_minute: 5}}}}
  - {{key_env: B_KEY, tenant: b, fallback: allow}}
"""
    made = plan(tmp_path, keys, "api_keys: [{key: in-the-config, tenant: c}]\n", B_KEY=OTHER)
    account = f"a/{digest(SECRET)[:8]}"
    assert made.ingress.keys == {
        digest("in-the-config"): Caller("c"),
        digest(SECRET): Caller("a", "", account),
        digest(OTHER): Caller("b", fallback="allow"),
    }
    assert made.quotas.keys[account].requests_per_minute == 5
    assert plan(tmp_path, keys, B_KEY="another-value").version != made.version


def test_a_wrong_key_file_is_refused_with_its_place(tmp_path: Path) -> None:
    """In its own lines where they are wrong, by its entry where it does not fit the config."""
    here = f"r.yaml:4: key_file: {tmp_path}/keys.yaml"
    good = f"keys:\n  - {{sha256: {digest(SECRET)}, tenant: a}}\n"
    assert f"{here}:2: keys[0].tenant: is required and missing" in refused(tmp_path, "keys:\n  - {key: long-enough}\n")
    twice = refused(tmp_path, good + f"  - {{key: {SECRET}, tenant: b}}\n")
    assert f"{here}: keys[1]: the same key is already 'a''s" in twice
    assert SECRET not in twice
    unset = refused(tmp_path, good + "  - {key_env: NOT_SET_ANYWHERE, tenant: b}\n")
    assert f"{here}: keys[1].key_env: environment variable NOT_SET_ANYWHERE is not set" in unset
    assert f"{here}: keys[0].slo_class: unknown class" in refused(tmp_path, good.replace("a}", "a, slo_class: x}"))
    monthly = good.replace("a}", "a, quota: {tokens_per_month: 9}}")
    assert f"{here}: keys[0].quota.tokens_per_month: needs state.redis_url" in refused(tmp_path, monthly)
    (tmp_path / "r.yaml").write_text(f"{BACKENDS}key_file: nowhere.yaml\n", encoding="utf-8")
    text = read(tmp_path / "r.yaml")
    with pytest.raises(ConfigError, match=r"key_file: .*nowhere.yaml: cannot be read"):
        make(text.parse(Settings), text)


@pytest.mark.parametrize("text", ["keys: []", "keys:"])
def test_the_last_key_of_a_file_can_be_taken_out(text: str, tmp_path: Path) -> None:
    """It ends, and without any key nobody is let in; what the config has of its tenant is no reason to keep it."""
    more = "quotas: {a: {requests_per_minute: 5}}\nmodels: {x: {fallback: [tiny], fallback_for: {tenants: [a]}}}\n"
    assert len(plan(tmp_path, f"keys: [{{sha256: {digest(SECRET)}, tenant: a}}]", more).ingress.keys) == 1
    made = plan(tmp_path, text, more)
    for fields in ({}, {b"authorization": f"Bearer {SECRET}".encode()}):
        with pytest.raises(Rejected, match="API key"):
            made.ingress.caller(fields)


def test_a_key_file_must_be_its_owners(tmp_path: Path) -> None:
    """Others may not write it, nor read keys in clear; hashes may be read, as those of a mounted secret are."""
    hashed, clear = f"keys: [{{sha256: {digest(SECRET)}, tenant: a}}]", f"keys: [{{key: {SECRET}, tenant: a}}]"
    assert len(plan(tmp_path, hashed, mode=0o644).ingress.keys) == 1
    assert len(plan(tmp_path, clear, mode=0o600).ingress.keys) == 1
    assert "others may write it (mode 0620); chmod 600" in refused(tmp_path, hashed, mode=0o620)
    said = refused(tmp_path, clear, mode=0o640)
    assert "others may read it (mode 0640), and it has keys in clear" in said
    assert SECRET not in said


async def test_a_key_is_taken_and_revoked_while_the_router_serves(tmp_path: Path) -> None:
    """When its file changes; a rollback does not bring a revoked one back, and none is shown anywhere."""
    keys = tmp_path / "keys.yaml"

    def write(*tenants: tuple[str, str]) -> None:
        lines = "".join(f"  - {{key: {key}, tenant: {tenant}}}\n" for key, tenant in tenants)
        keys.touch(0o600)
        keys.write_text(f"keys:\n{lines}", encoding="utf-8")

    write((SECRET, "a"), (OTHER, "b"))
    record, log = tmp_path / "record.jsonl", tmp_path / "access.log"
    more = f"key_file: keys.yaml\nrecord: {{file: {record}}}\nlog: {{access: json, access_file: {log}}}\n"
    async with ScriptedEngine([stream("a")]) as engine, Pages(dict(HEALTHY)) as pages:
        async with router(tmp_path / "r.yaml", config(backend("a", engine, pages), more=more)) as it:

            async def status(key: str) -> int:
                return (await it.chat(headers={"authorization": f"Bearer {key}"})).status_code

            watching = it.gateway.reloader
            assert [await status(SECRET), await status(OTHER), await status("neither-of-both")] == [200, 200, 401]
            first = watching.last.version
            write((OTHER, "b"))

            async def revoked() -> bool:
                return await status(SECRET) == 401

            await until_async(revoked)
            assert watching.last.version != first
            assert await status(OTHER) == 200
            assert (await it.client.post("/admin/rollback", params={"to": first})).status_code == 200
            assert [await status(SECRET), await status(OTHER)] == [401, 200]
            keys.write_text("keys: [{tenant: b}]\n", encoding="utf-8")
            await until(lambda: not watching.last.ok)
            assert await status(OTHER) == 200
            shown = [
                (await it.get(path)).text for path in ("/admin/fleet", "/admin/config", "/admin/policy", "/metrics")
            ]
        written = [path.read_text(errors="replace") for path in (record, log)]
    assert all(SECRET not in text and OTHER not in text for text in shown + written)
    assert "Bearer" not in "".join(written)


def test_the_command_makes_a_key_and_shows_it_once() -> None:
    """The entry has its hash alone, so that it can be appended to the file."""
    made = router_command(["key", "--tenant", "team-a", "--slo-class", "chat"])
    key = made.stderr.splitlines()[0]
    assert made.exit_code == 0
    assert len(key) > 40
    assert yaml.safe_load(made.stdout) == [{"sha256": digest(key), "tenant": "team-a", "slo_class": "chat"}]
    assert key not in made.stdout
    assert router_command(["key", "--tenant", "t"]).stderr.splitlines()[0] != key


def test_the_command_hashes_a_key_from_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a length that cannot be guessed; it is repeated nowhere."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("a-key-of-enough-characters\n"))
    made = router_command(["key", "--tenant", "'odd: name'", "--hash"])
    entry = {"sha256": digest("a-key-of-enough-characters"), "tenant": "'odd: name'"}
    assert (yaml.safe_load(made.stdout), made.stderr) == ([entry], "")
    monkeypatch.setattr(sys, "stdin", io.StringIO("short\n"))
    refusal = router_command(["key", "--tenant", "t", "--hash"])
    assert (refusal.exit_code, "the key has 5 characters" in refusal.stderr) == (1, True)


def test_references_of_a_config_are_read_once(tmp_path: Path) -> None:
    """For its values and its version: a file that changes between the two would give a version that never was."""
    (tmp_path / "r.yaml").write_text(BACKENDS + 'admin_key: {key: "${file:secret}"}\n', encoding="utf-8")
    (tmp_path / "secret").write_text("first-secret", encoding="utf-8")
    text = read(tmp_path / "r.yaml")
    parsed = text.parse(Settings)
    (tmp_path / "secret").write_text("other-secret", encoding="utf-8")
    made = make(parsed, text)
    assert made.admin_digest == digest("first-secret")
    (tmp_path / "secret").write_text("first-secret", encoding="utf-8")
    again = read(tmp_path / "r.yaml")
    assert make(again.parse(Settings), again).version == made.version
    assert json.dumps(made.text).count("first-secret") == 0
