"""Configs of other routers become a router.yaml that can be served, and nothing of them is dropped in silence."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config.settings import Settings
from router.config.text import document
from router.core.errors import ConfigError
from router.gateway.config.plan import Plan, make
from router.importing.conversion import Imported, convert
from router.importing.registry import find, formats, recognised
from tests.commands import router_command

FILES = Path(__file__).parent / "files"
EXAMPLES = {
    "litellm.yaml": "litellm",
    "vllm_router.sh": "vllm-router",
    "vllm_router_rust.sh": "vllm-router",
    "vllm_router_dynamic.yaml": "vllm-router",
    "llmd.yaml": "llm-d",
    "nginx.conf": "nginx",
    "haproxy.cfg": "haproxy",
}
SECRETS = ("a-secret", "a-password", "sk-", "hf_")


def imported(name: str) -> Imported:
    return convert((FILES / name).read_text(encoding="utf-8"), name)


def data(made: Imported) -> dict[str, Any]:
    loaded = yaml.safe_load(made.text)
    assert isinstance(loaded, dict)
    return loaded


def planned(made: Imported) -> Plan:
    """What `headroom check` does with it, once its variables are set."""
    text = document(made.text, "router.yaml")
    environment = dict.fromkeys(made.variables, "a-value-that-is-set")
    resolved, unresolved = text.resolved(environment)
    assert unresolved == []
    return make(Settings.model_validate(resolved), text, environment)


def notes(made: Imported) -> str:
    _, _, rest = made.text.partition("this is not taken over:\n")
    return rest


def backends(made: Imported) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in data(made)["backends"]}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_recognised_and_accepted(name: str) -> None:
    """As the format that it is, and as a config that serves."""
    assert recognised((FILES / name).read_text(encoding="utf-8"), name).name == EXAMPLES[name]
    planned(imported(name))


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_secret_is_copied(name: str) -> None:
    """Neither into a value nor into a comment."""
    text = imported(name).text
    assert [secret for secret in SECRETS if secret in text] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_value_of_a_comment_names_a_line_of_the_file(name: str) -> None:
    """And the number of settings that are named is the number that the command reports."""
    made = imported(name)
    lines = (FILES / name).read_text(encoding="utf-8").splitlines()
    places = [int(note.split("line ")[1].split(":")[0]) for note in notes(made).splitlines()]
    assert len(places) == made.notes
    assert all(1 <= place <= len(lines) for place in places)
    assert places == sorted(places)


def test_deployments_of_one_address_are_one_backend() -> None:
    """LiteLLM lists one a model; names, aliases, weights and engines are those that it has."""
    found = backends(imported("litellm.yaml"))
    served = "meta-llama/Llama-3.1-70B-Instruct"
    assert found["big-8000"] == {
        "name": "big-8000",
        "url": "http://big:8000",
        "engine": "vllm",
        "api_key": "${VLLM_KEY}",
        "weight": 3,
        "models": {"llama": served, "chat": served, "llama-lora": "support-adapter"},
    }
    assert found["small-8000"]["api_key"] == "${HOSTED_VLLM_API_KEY}"
    assert found["small-8000"]["weight"] == 1


def test_litellms_router_settings() -> None:
    """Retries are attempts beside the first; the master key is of clients and of operators; prices are per million."""
    made = imported("litellm.yaml")
    config = data(made)
    assert config["policy"] == {
        "routing": "slo_headroom",
        "limits": {
            "attempts_max": 3,
            "failures_max": 4,
            "eject_s": 30,
            "whole_reply_s_max": 300,
            "first_byte_s_max": 20,
        },
    }
    assert "least_request is the nearest" in made.text
    assert config["state"]["redis"] == {"urls": ["redis://redis.internal:6379"], "password": "${REDIS_PASSWORD}"}
    assert config["models"] == {"llama-lora": {"fallback": ["llama"], "fallback_for": "everyone"}}
    assert config["admin_key"] == {"key": "${LITELLM_MASTER_KEY}"}
    assert config["prices"] == {"llama": {"input": 0.2, "output": 0.6}}
    assert made.variables == ("VLLM_KEY", "HOSTED_VLLM_API_KEY", "REDIS_PASSWORD", "LITELLM_MASTER_KEY")
    for line, key in (
        (9, "rpm"),
        (24, "model_list[3]"),
        (40, "fallbacks"),
        (44, "success_callback"),
        (48, "database_url"),
    ):
        assert any(f"line {line}: " in each and key in each for each in notes(made).splitlines()), (line, key)


def test_an_address_is_without_the_version_that_paths_begin_with() -> None:
    """Wherever a format has one for clients of OpenAI's API."""
    litellm = "model_list: [{model_name: m, litellm_params: {model: openai/m, api_base: 'http://a:1/v1/'}}]\n"
    workers = "vllm-router --worker-urls http://a:1/v1 http://b:1/v1/\n"
    static = "vllm-router --static-backends http://a:1/v1,http://b:1 --static-models m,m\n"
    for text, addresses in ((litellm, "a"), (workers, "ab"), (static, "ab")):
        found = data(convert(text, "f"))["backends"]
        assert [each["url"] for each in found] == [f"http://{address}:1" for address in addresses]


def test_a_command_line_of_the_production_stack() -> None:
    """Addresses and models side by side; an option that is not known is named with its line."""
    made = imported("vllm_router.sh")
    assert data(made)["listen"] == {"host": "0.0.0.0", "port": 8001}
    assert backends(made)["a-8000"]["models"] == {"llama": "llama", "chat": "llama"}
    assert backends(made)["b-8000"]["url"] == "http://b:8000"
    assert "line 10: made-up-option: not known to this import" in notes(made)
    assert "line 2: HF_TOKEN" in notes(made)


def test_a_command_line_of_the_rust_router() -> None:
    """Limits, health checks and the workers' key."""
    config = data(imported("vllm_router_rust.sh"))
    assert [each["url"] for each in config["backends"]] == ["http://w1:8000", "http://w2:8000"]
    assert config["backends"][0]["api_key"] == "${ENGINE_API_KEY}"
    limits = {"whole_reply_s_max": 900, "attempts_max": 2, "failures_max": 5, "eject_s": 20}
    assert config["policy"]["limits"] == limits
    assert config["scrape"] == {"down_after": 4, "timeout_s": 3}
    assert config["cors"] == {"origins": ["https://app.example"]}


def test_a_dynamic_config() -> None:
    """Models with their addresses."""
    made = imported("vllm_router_dynamic.yaml")
    assert {each["url"]: list(each["models"]) for each in data(made)["backends"]} == {
        "http://a:8000": ["llama", "chat"],
        "http://b:8000": ["llama", "chat"],
        "http://c:8000": ["qwen"],
    }


def test_a_pool_of_the_gateway_api() -> None:
    """Pods by labels, the picker's port, classes by priority; each scorer is named."""
    made = imported("llmd.yaml")
    config = data(made)
    assert config["discover"] == [
        {
            "kubernetes": {"selector": "app=vllm-llama,tier=gpu", "namespace": "llm", "port": 8000},
            "defaults": {"models": {"support": "support-adapter", "chat-v1": "chat-v1", "chat-v2": "chat-v2"}},
        }
    ]
    assert config["models"] == {"chat": {"split": {"chat-v1": 90, "chat-v2": 10}}}
    assert config["epp"] == {"host": "0.0.0.0", "port": 9002}
    assert config["slo_classes"]["interactive"] == {"priority": -10}
    assert config["slo_classes"]["support"] == {"priority": -1}
    named = notes(made)
    for line in ("line 6: spec.targetPorts[1]", "line 17: ", "line 18: ", "line 20: ", "line 44: "):
        assert line in named
    assert "our-own-scorer: a plugin that is not known" in named


def test_objects_as_kubectl_prints_them() -> None:
    """A list of them, with what the cluster added."""
    text = """apiVersion: v1
kind: List
items:
- apiVersion: inference.networking.k8s.io/v1
  kind: InferencePool
  metadata: {name: a, uid: 1-2, resourceVersion: "7", labels: {x: y}}
  spec: {selector: {matchLabels: {app: a}}, targetPorts: [{number: 8000}]}
  status: {parents: []}
metadata: {resourceVersion: ""}
zzz: 1
"""
    made = convert(text, "pool.yaml")
    assert data(made)["discover"] == [{"kubernetes": {"selector": "app=a", "port": 8000}}]
    for place in ("line 6: items[0].metadata.uid: no equivalent: metadata of Kubernetes", "line 8: items[0].status",
                  "line 10: zzz"):  # fmt: skip
        assert place in notes(made)
    planned(made)


def test_upstreams_of_nginx() -> None:
    """Over HTTPS where they are passed to so; a server that is down is left out and named."""
    made = imported("nginx.conf")
    config = data(made)
    urls = {each["url"]: each.get("weight") for each in config["backends"]}
    assert urls == {"https://10.0.0.7:8000": 3, "https://10.0.0.8:8000": None}
    assert config["upstream"] == {"idle_max": 64, "stall_s": 300, "connect_s": 0.5}
    assert config["listen"] == {"port": 443, "body_bytes_max": 16 << 20}
    for place in (
        "line 5: http.upstream.server.max_fails: write",
        "line 7: http.upstream.server: left out: it is marked down",
        "line 8: http.upstream.server: left out: expected an address",
        "line 12: http.server.listen[1]: for TLS write listen.tls",
        "line 20: http.server.location.proxy_set_header: no equivalent",
    ):
        assert place in notes(made)


def test_servers_of_haproxy() -> None:
    """Names, weights, TLS, times in milliseconds unless they have a unit."""
    made = imported("haproxy.cfg")
    found = backends(made)
    assert {name: each["url"] for name, each in found.items()} == {
        "big": "http://10.0.0.7:8000",
        "small": "https://10.0.0.8:8443",
        "spare": "http://10.0.0.9:8000",
    }
    assert found["big"]["weight"] == 100
    assert data(made)["upstream"] == {"connect_s": 2, "reader_s": 60, "stall_s": 600}
    assert data(made)["listen"] == {"port": 8080, "host": "0.0.0.0"}
    assert data(made)["policy"]["limits"] == {"attempts_max": 3}
    assert "line 19: backend.server: left out: it is disabled" in notes(made)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "of no format that is known; name it with --from: one of haproxy, litellm, llm-d, nginx, vllm-router"),
        ("model_list: [", "e.yaml:1: not valid YAML"),
        ("a: 1\nmodel_list:\n\t- x", "e.yaml:3: not valid YAML"),
        ("model_list: []", "e.yaml:1: no engine is named in it"),
        ("model_list:\n- {model_name: a, litellm_params: {model: openai/gpt-4o}}", "e.yaml:2: model_list[0]: left out"),
        ("model_list:\n- {litellm_params: {model: openai/x, api_base: 'http://a b'}}", "expected http://host:port"),
        ("upstream a {\n server b", "e.yaml:2: is not closed"),
        ("upstream a { }\n}", "e.yaml:2: unexpected }"),
        ("vllm-router --static-backends 'http://a", "not a command line: No closing quotation"),
        ("a: &a [*a]\nmodel_list: 1", "an alias inside of what it names"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_a_line_with_its_place(text: str, why: str) -> None:
    """File, line and what was expected."""
    with pytest.raises(ConfigError) as refused:
        convert(text, "e.yaml")
    assert why in "\n".join(refused.value.lines)
    assert all(line.startswith("e.yaml:") for line in refused.value.lines)


def test_many_values_by_few_lines_are_refused() -> None:
    """Aliases of aliases stand for as many as there are atoms."""
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9))
    with pytest.raises(ConfigError, match="more than 20000 settings"):
        convert(f"model_list: 1\nl0: &l0 [x]\n{levels}\n", "e.yaml")
    merged = "\n".join(f"l{n}: &l{n} {{<<: [*l{n - 1}, *l{n - 1}]}}" for n in range(1, 41))
    with pytest.raises(ConfigError, match="more than 20000 settings"):
        convert(f"model_list: 1\nl0: &l0 {{}}\n{merged}\n", "e.yaml")


def test_a_value_that_the_schema_refuses_is_left_out_and_named() -> None:
    """The others are taken over."""
    text = "upstream a {\n server ok:8000;\n server bad..name:8000;\n server other:8000 weight=1e400;\n}"
    made = convert(text, "e.conf")
    assert list(backends(made)) == ["ok-8000", "other-8000"]
    assert "line 3: upstream.server" in notes(made)
    assert "line 4: upstream.server.weight" in notes(made)
    planned(made)


def test_a_rule_for_a_model_that_nothing_serves_any_more_is_left_out() -> None:
    """Its backend was left out, for its address is none."""
    deployment = "- {model_name: %s, litellm_params: {model: openai/x, api_base: '%s'}}"
    text = "\n".join(["model_list:", deployment % ("a", "http://a"), deployment % ("b", "http://b b"),
                      "router_settings: {fallbacks: [{a: [b]}]}"])  # fmt: skip
    made = convert(text, "e.yaml")
    assert "models" not in data(made)
    assert "line 4: router_settings.fallbacks[0].a: left out" in notes(made)
    planned(made)


def test_the_command_prints_a_config_and_reports_what_it_lacks() -> None:
    """On standard output and on standard error; the help names every format."""
    done = router_command(["import", str(FILES / "haproxy.cfg")])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("# Headroom's config")
    assert "backend sections of HAProxy: 3 backends; " in done.stderr
    wrong = router_command(["import", "--from", "litelm", str(FILES / "litellm.yaml")])
    assert (wrong.exit_code, "did you mean 'litellm'?" in wrong.stderr) == (1, True)
    shown = router_command(["import", "--help"]).stdout
    assert [each.name for each in formats() if each.name not in shown] == []
    missing = router_command(["import", "no-such-file"])
    assert (missing.exit_code, "no-such-file: cannot be read" in missing.stderr) == (1, True)


# ---- whatever is in the file -------------------------------------------------------

CONTENTS = [(FILES / name).read_text(encoding="utf-8") for name in EXAMPLES]
WORDS = sorted({word for content in CONTENTS for word in content.split()})
LINES = sorted({line for content in CONTENTS for line in content.splitlines()})
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join),
    st.lists(st.sampled_from(LINES), max_size=30).map("\n".join),
)


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.sampled_from([each.name for each in formats()]))
def test_no_input_crashes(text: str, form: str) -> None:
    """It is a config that serves, or an error with a place."""
    try:
        made = convert(text, "e", find(form))
    except ConfigError as error:
        assert all(line.startswith("e:") for line in error.lines)  # noqa: PT017 - either is right
        return
    planned(made)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.from_regex(r"zz[a-z]{1,8}", fullmatch=True))
def test_each_unknown_key_is_named_with_its_line(draw: st.DataObject, key: str) -> None:
    """Wherever a file has it."""
    name, line, written = draw.draw(
        st.sampled_from(
            [
                ("litellm.yaml", 32, f"  {key}: 1"),
                ("litellm.yaml", 44, f"  {key}: [1, 2]"),
                ("litellm.yaml", 7, f"      {key}: a"),
                ("litellm.yaml", 2, f"{key}: a"),
                ("vllm_router.sh", 4, f"  --{key} a \\"),
                ("vllm_router_dynamic.yaml", 3, f"{key}: a"),
                ("llmd.yaml", 5, f"  {key}: a"),
                ("llmd.yaml", 15, f"    {key}: a"),
                ("nginx.conf", 4, f"        {key} a;"),
                ("nginx.conf", 2, f"{key} a b;"),
                ("haproxy.cfg", 14, f"    {key} a"),
                ("haproxy.cfg", 2, f"    {key}"),
            ]
        )
    )
    lines = (FILES / name).read_text(encoding="utf-8").splitlines()
    lines.insert(line - 1, written)
    made = convert("\n".join(lines), name)
    named = [note for note in notes(made).splitlines() if key in note]
    assert named
    assert all(f"line {line}: " in note for note in named)
