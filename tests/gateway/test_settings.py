"""The config: what a good one stands for, and how a bad one is refused, by file, line and key."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from policies.routing.slo_headroom import SloHeadroom
from router.config.settings import Listen, Own, Policy, Settings, SloClass
from router.config.text import document
from router.core.errors import ConfigError
from router.core.types import Slo
from router.gateway.config.keys import digest
from router.gateway.config.plan import Plan, make, plan_file
from router.gateway.protocols.ingress import Caller
from router.gateway.state.servers import RedisServers, Seed

BACKENDS = """
backends:
  - {name: a, url: "http://127.0.0.1:8001/", models: [tiny], card: l20, model: qwen2.5-7b, tp: 2}
"""


def plan(text: str, **environment: str) -> Plan:
    """The plan of that text."""
    parsed = document(text, "r.yaml")
    return make(parsed.parse(Settings), parsed, environment)


def refused(text: str) -> list[str]:
    """The lines with which that text is refused."""
    with pytest.raises(ConfigError) as caught:
        plan(text)
    return list(caught.value.lines)


def test_a_backend_gets_physics_capacity_and_price_from_its_card_and_model() -> None:
    """What is left out follows from the tables: two L20 at 0.9 USD/h each, KV for some 10^5 tokens."""
    made = plan(BACKENDS)
    backend = made.backends[0]
    assert backend.models == ("tiny",)
    assert backend.price_per_hour == pytest.approx(1.8)
    assert 100_000 < backend.kv_tokens_max < 5_000_000
    assert backend.variant == "l20-tp2"
    assert made.settings.backends[0].url == "http://127.0.0.1:8001"
    assert isinstance(made.routing, SloHeadroom)


def test_a_model_may_have_another_name_at_the_engine() -> None:
    """The keys of the mapping are the names that clients use."""
    made = plan(BACKENDS.replace("[tiny]", "{tiny: ensemble, small: ensemble}"))
    assert made.backends[0].models == ("tiny", "small")
    assert made.settings.backends[0].models["small"] == "ensemble"


def test_slo_classes_are_read_in_milliseconds() -> None:
    """A bound left out is none."""
    made = plan(BACKENDS + "slo_classes: {default: {ttft_ms: 500, quantile: 0.95, priority: 3}}")
    assert made.ingress.classes["default"].slo == Slo(ttft_s=0.5, quantile=0.95)
    assert made.ingress.classes["default"].priority == 3


def test_a_card_may_be_given_in_place_or_corrected() -> None:
    """``like`` keeps what is not said anew; without it the card is believed with wide errors."""
    text = BACKENDS.replace("l20", "{like: cpu, bandwidth_gb_per_s: 80, memory_gib: 30}")
    text = text.replace("qwen2.5-7b", "qwen2.5-0.5b")
    corrected = plan(text).backends[0]
    own = plan(BACKENDS.replace("l20", "{memory_gib: 40, bandwidth_gb_per_s: 900, tflops: {bf16: 120}}")).backends[0]
    known = plan(BACKENDS).backends[0]
    assert (
        corrected.prior.fixed_s < plan(BACKENDS.replace("l20", "cpu").replace("7b", "0.5b")).backends[0].prior.fixed_s
    )
    assert own.prior.sigma[0] > known.prior.sigma[0]


def test_a_model_shape_may_be_given_in_place() -> None:
    """From its config.json, when no table has it."""
    shape = "{params_billions: 7.6, layers: 28, hidden: 3584, heads: 28, kv_heads: 4, vocab: 152064}"
    own, known = plan(BACKENDS.replace("qwen2.5-7b", shape)).backends[0], plan(BACKENDS).backends[0]
    assert own.prior.fixed_s == pytest.approx(known.prior.fixed_s, rel=0.1)


def test_keys_are_kept_as_digests_and_read_from_the_environment() -> None:
    """No secret in clear outlives the reading."""
    hidden = digest("hidden-away")
    keys = f"[{{key_env: TEAM_KEY, tenant: team, slo_class: default}}, {{sha256: {hidden}, tenant: other}}]"
    made = plan(f"{BACKENDS}api_keys: {keys}\nadmin_key: {{key: correct-horse}}", TEAM_KEY="secret-one")
    assert made.ingress.keys[digest("secret-one")] == Caller("team", "default")
    assert made.ingress.keys[hidden] == Caller("other")
    assert made.admin_digest == digest("correct-horse")


def test_measured_coefficients_take_the_place_of_the_tables() -> None:
    """Those that are given, in seconds; the others follow from card and model as before."""
    sheet = plan(BACKENDS).backends[0].prior
    found = plan(BACKENDS.replace("tp: 2", "tp: 2, coefficients: {fixed_s: 0.021, seq_s: 0}")).backends[0].prior
    assert found == replace(sheet, fixed_s=0.021, seq_s=0.0)


def test_a_coefficient_that_cannot_be_is_refused_with_its_place() -> None:
    """A name no step has, and seconds below 0, with line and key."""
    lines = refused(BACKENDS.replace("tp: 2", "tp: 2, coefficients: {fixed: 1}"))
    assert lines[0].startswith("r.yaml:3: backends[0].coefficients")
    assert "no coefficient 'fixed'" in lines[0]
    assert "fixed_s" in lines[0]
    assert "got -1" in refused(BACKENDS.replace("tp: 2", "tp: 2, coefficients: {fixed_s: -1}"))[0]


def test_every_fault_of_a_file_is_told_at_once_with_its_line() -> None:
    """Each line names file, line, key and what was expected."""
    lines = refused("""listen:
  prot: 8080
  port: many
backends:
  - name: a b
    url: 127.0.0.1:8001
    models: []
    card: {like: l20, memry_gib: 3}
    tp: 0
""")
    assert [line.split(": ")[0] + " " + line.split(": ")[1] for line in lines] == [
        "r.yaml:2 listen.prot",
        "r.yaml:3 listen.port",
        "r.yaml:5 backends[0].name",
        "r.yaml:6 backends[0].url",
        "r.yaml:7 backends[0].models",
        "r.yaml:8 backends[0].card.memry_gib",
        "r.yaml:9 backends[0].tp",
    ]
    assert "did you mean 'port'?" in lines[0]
    assert "did you mean 'memory_gib'?" in lines[5]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("listen:\n  port: [1\nbackends: 2", "r.yaml:3: not valid YAML"),
        ("backends:\n\t- {name: a}", "r.yaml:2: not valid YAML: the line is indented with a tab; YAML takes spaces"),
        ("- a", "r.yaml:1: expected keys with values"),
        ("", "r.yaml:1: expected keys with values"),
        ("a: 1\nb: 2\na: 3", "r.yaml:3: key 'a' is given twice"),
        ("backends: []", "r.yaml:1: backends: needs at least one entry"),
        (BACKENDS.replace("l20", "l21"), "r.yaml:3: backends[0].card: no card named 'l21'; did you mean 'l2"),
        (
            BACKENDS.replace("7b", "7x"),
            "r.yaml:3: backends[0].model: no model named 'qwen2.5-7x'; did you mean 'qwen2.5-7b",
        ),
        (BACKENDS.replace("l20", "t4").replace("tp: 2", "tp: 1"), "r.yaml:3: backends[0].model: does not fit"),
        (BACKENDS.replace("tp: 2", "tp: 3"), "r.yaml:3: backends[0].model: does not fit: TP 3 does not divide"),
        (BACKENDS.replace("tp: 2", "precision: fp7"), "r.yaml:3: backends[0].precision: no precision named 'fp7'"),
        (BACKENDS + BACKENDS.split("\n")[2], "r.yaml:4: backends[1].name: two backends are named 'a'"),
        (BACKENDS.replace(":8001", ":80a1"), "r.yaml:3: backends[0].url: expected http://host:port"),
        *(
            (f"backends:\n  - {{name: a, url: '{url}'}}\n", f"r.yaml:2: backends[0].url: {fault}")
            for url, fault in (
                ("http://a..b:1", "expected http://host:port"),
                (f"http://{'a' * 64}:1", "expected http://host:port"),
                ("http://a b:1", "expected http://host:port"),
                ("http://ä:1", "expected http://host:port"),
                ("http://user:secret@a:1", "a username has no use here"),
                ("http://a:1?b=c", "a query has no use here"),
                ("http://a:1/#b", "a fragment has no use here"),
            )
        ),
        *(
            (
                f"backends:\n  - {{name: a, url: 'http://a:1', {key}: .inf}}\n",
                f"r.yaml:2: backends[0].{key}: input should be a finite number, not inf",
            )
            for key in ("network_ms", "price_per_hour")
        ),
        ("backends: &all\n  - *all\n", "r.yaml:1: an alias (*name) stands inside of what it names"),
        (
            "backends:\n  - {name: a, url: 'http://a:1', models: [[m]]}\n",
            "r.yaml:2: backends[0].models: expected a list of",
        ),
        (BACKENDS + "default_slo_class: chat", "r.yaml:4: default_slo_class: unknown class; expected one of default"),
        (BACKENDS + "policy: {routing: slo_hedroom}", "r.yaml:4: policy.routing: unknown routing policy 'slo_hedroom'"),
        (
            BACKENDS + "policy: {routing: {name: slo_headroom, parameters: {sfety: 2}}}",
            "r.yaml:4: policy.routing: routing policy 'slo_headroom' has no parameter 'sfety'",
        ),
        (BACKENDS + "admin_key: {key_env: NOT_SET}", "r.yaml:4: admin_key.key_env: environment variable NOT_SET"),
        (BACKENDS + "admin_key: {}", "r.yaml:4: admin_key: give exactly one of key, key_env, sha256"),
        (BACKENDS + "state: {lease_s: 0.1}", "r.yaml:4: state: lease_s must be at least 3 x sync_s"),
        (BACKENDS + "state: {redis_url: localhost}", "r.yaml:4: state.redis_url: expected redis://host:port/db"),
        (
            BACKENDS.replace("tp: 2", "tp: 2, variant: big") + "autoscale: {variants: {big: {begin_s: 60}}}",
            "r.yaml:4: autoscale.variants.big.begin_s: unknown key; expected one of loss_per_hour, max_replicas",
        ),
        (
            BACKENDS + "autoscale: {target: webhok}",
            "r.yaml:4: autoscale.target.name: unknown scaling target 'webhok'; did you mean 'webhook'?",
        ),
        (BACKENDS + "autoscale: {target: webhook}", "r.yaml:4: autoscale.target.url: is required and missing"),
        (
            BACKENDS + "autoscale:\n  target:\n    name: webhook\n    url: 'http://h:1'\n    timout_s: 3",
            "r.yaml:8: autoscale.target.timout_s: unknown key; did you mean 'timeout_s'?",
        ),
        (
            BACKENDS + "autoscale: {target: {name: webhook, url: 'h:1'}}",
            "r.yaml:4: autoscale.target.url: expected http://host:port, not 'h:1'",
        ),
        (BACKENDS + "autoscale: {target: {name: advise, url: x}}", "r.yaml:4: autoscale.target.url: unknown key"),
        (
            BACKENDS + "autoscale: {variants: {big: {}}}",
            "r.yaml:4: autoscale.variants.big: no backend has variant: big",
        ),
        (
            BACKENDS + "autoscale: {inside: true, target: {name: webhook, url: 'http://h:1'}}",
            "r.yaml:4: autoscale.election.by: several routers with this config would all scale, as inside is true and "
            "they share no state: set state.redis_url, or by: kubernetes; by: none is for a router that is the only",
        ),
    ],
)
def test_a_bad_config_is_refused_with_its_place(text: str, line: str) -> None:
    """One fault, one line that says where and what was expected."""
    assert refused(text)[0].startswith(line)


@pytest.mark.parametrize(
    "more",
    [
        "autoscale: {inside: true}",  # it only advises
        "autoscale: {target: {name: webhook, url: 'http://h:1'}}",
        "autoscale: {inside: true, target: {name: webhook, url: 'http://h:1'}, election: {by: none}}",
        "autoscale: {inside: true, target: {name: webhook, url: 'http://h:1'}}\nstate: {redis_url: 'redis://h:1'}",
    ],
)
def test_an_autoscaler_that_acts_alone_or_is_elected_is_taken(more: str) -> None:
    parsed = document(BACKENDS + more, "r.yaml")
    assert make(parsed.parse(Settings), parsed, {}).settings.autoscale is not None


def test_a_model_without_a_row_may_be_given_by_its_facts() -> None:
    """A fine-tune's own name suggests nothing that is near it."""
    (line,) = refused(BACKENDS.replace("qwen2.5-7b", "our-support-bot"))
    assert "`model: NAME` of the one that it is a fine-tune of, or its facts" in line


def test_a_file_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        plan_file(tmp_path / "nowhere.yaml")


BUILT = """
import sys
from pathlib import Path
from router.config import settings
settings.load(Path(sys.argv[1]))
each = [kind for kind in vars(settings).values() if isinstance(kind, type) and issubclass(kind, settings.Section)]
print(*(kind.__name__ for kind in each if kind is not settings.Section and kind.__pydantic_complete__))
"""


def test_the_file_is_read_with_one_validator(tmp_path: Path) -> None:
    """Each section's own would double the time until a command that reads a config begins its work."""
    path = tmp_path / "r.yaml"
    path.write_text(BACKENDS, encoding="utf-8")
    done = subprocess.run([sys.executable, "-P", "-c", BUILT, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Settings"]


def test_a_section_left_out_has_its_defaults() -> None:
    """The same value as the section without a key."""
    parsed = document(BACKENDS, "r.yaml").parse(Settings)
    assert parsed.listen == Listen()
    assert parsed.policy == Policy()
    assert parsed.policy.routing == Own(name="slo_headroom")
    assert parsed.slo_classes == {"default": SloClass()}
    assert parsed.autoscale.target.name == "advise"


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ("{redis_url: 'redis://:secret@h:x'}", "4: state.redis_url: expected redis://host:port/db (rediss:// for TLS, "
         "unix:///path for a socket), not 'redis://h:x'"),
        ("{redis_url: 'redis://h/one'}", "4: state.redis_url: expected redis://host:port/db"),
        ("{redis_url: 'redis://h?socket_timeout=1'}", "4: state.redis_url: options have no use here; expected "
         "redis://host:port/db, and the rest as keys of state.redis"),
        ("{redis_url: 'redis://h', redis: {urls: ['redis://h']}}", "4: state: give redis_url or redis, not both"),
        ("\n  redis: {urls: []}", "5: state.redis.urls: needs at least one entry"),
        ("\n  redis:\n    urls: ['redis://a', 'http://b']", "6: state.redis.urls[1]: expected redis://host"),
        ("\n  redis: {urls: ['redis://a', 'rediss://b']}",
         "5: state.redis: urls: expected one scheme for all, not redis and rediss"),
        ("\n  redis: {urls: ['redis://a/1', 'redis://b/2']}",
         "5: state.redis: urls: expected one database for all, not 1 and 2"),
        ("\n  redis: {urls: ['unix:///s'], service: p}", "5: state.redis: urls: a Unix socket is of one server"),
        ("\n  redis: {urls: ['redis://a'], username: u}", "5: state.redis: username needs password or password_env"),
        ("\n  redis: {urls: ['redis://a'], password: p, password_env: P}",
         "5: state.redis: give password or password_env, not both"),
        ("\n  redis: {urls: ['redis://a'], ca: x.pem}", "5: state.redis: ca has no use: TLS needs rediss://"),
        ("\n  redis: {urls: ['redis://a'], verify_hostname: no}", "5: state.redis: verify_hostname has no use"),
        ("\n  redis: {urls: ['rediss://a'], client_key: x}", "5: state.redis: client_key needs client_cert"),
        ("\n  redis:\n    urls: ['rediss://a']\n    ca: none.pem",
         "7: state.redis.ca: cannot read none.pem: No such file or directory"),
        ("\n  redis:\n    urls: ['redis://a']\n    password_env: NOT_SET",
         "7: state.redis.password_env: environment variable NOT_SET is not set"),
    ],
)  # fmt: skip
def test_bad_servers_of_the_shared_state_are_refused_with_their_place(state: str, line: str) -> None:
    """No password is in an error."""
    (fault,) = refused(f"{BACKENDS}state: {state}")
    assert fault.startswith(f"r.yaml:{line}")
    assert "secret" not in fault


def test_servers_of_the_shared_state_in_both_forms() -> None:
    """A URL alone is a list of one; users of addresses and of servers of data are apart; files are from the folder."""
    text = (
        BACKENDS
        + """state:
  redis:
    urls: ["rediss://watcher:w%40y@s1:26379/2", "rediss://s2/2"]
    service: headroom
    username: router
    password_env: REDIS
    verify_hostname: false
"""
    )
    found = plan(text, REDIS="secret").redis
    assert found is not None
    seeds = (Seed("s1", 26379, "", "watcher", "w@y"), Seed("s2", 6379))
    assert found == RedisServers(seeds, 2, True, "headroom", "router", "secret", verify_hostname=False)
    assert str(found) == "s1:26379, s2:6379"
    assert "secret" not in repr(found)
    assert "w@y" not in repr(found)
    for url, seed in (
        ("redis://[::1]:7000/3", Seed("::1", 7000)),
        ("unix://u:p@/run/redis.sock?db=3", Seed(path="/run/redis.sock", username="u", password="p")),
    ):
        assert plan(BACKENDS + f"state: {{redis_url: '{url}'}}").redis == RedisServers((seed,), 3)
    assert str(Seed("::1", 7000)) == "[::1]:7000"
    assert plan(BACKENDS).redis is None
