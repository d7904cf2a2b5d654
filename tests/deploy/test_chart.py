"""The Helm chart: lint, Kubernetes' own schemas, a config that the router takes, no more rights than are used."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import get_args, get_origin
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from router.config.discover import KubernetesSource
from router.config.section import Section
from router.config.settings import Settings
from router.gateway.config.plan import Plan, plan_file
from router.gateway.sources.kubernetes import PodsOfService
from tests.deploy.chart import CHART, HelmError, everything, kubernetes_validate, lint, of_everything, one, rendered
from tests.kubernetes.watched_api import WatchedApi
from tests.waiting import until

ROOT = Path(__file__).parents[2]
ENGINES = {"engines": [{"service": "vllm"}]}
SCALED = ENGINES | {"autoscaler": {"enabled": True}}
WORKLOADS = [{"variant": "v", "name": "llama"}]
KUBERNETES = {"name": "kubernetes", "workloads": WORKLOADS}
OWN_SCHEMAS = {"ServiceMonitor", "PrometheusRule"}  # of the Prometheus operator, not of Kubernetes
OLDEST, NEWEST = "1.30", "1.37"
VARIATIONS = [
    ENGINES,
    everything(),
    {"config": {"backends": [{"name": "a", "url": "http://a:8000"}]}, "redis": {"enabled": False}},
    ENGINES | {"redis": {"enabled": False, "url": "rediss://mine:6380/0"}, "adminKey": {"existingSecret": "mine"}},
    ENGINES | {"autoscaler": {"enabled": True}, "networkPolicy": {"enabled": False}},
    ENGINES | {"router": {"disruptionBudget": {"enabled": False}, "nodeSelector": {"a": "b"}}},
    ENGINES | {"config": {"state": {"mesh": {"key": "0123456789abcdef"}}}},
    ENGINES | {"config": {"autoscale": {"target": "keda"}}, "autoscaler": {"enabled": True}},
    ENGINES | {"config": {"autoscale": {"target": {"name": "keda", "port": 9301}, "inside": True}}},
    ENGINES | {"redis": {"persistence": {"enabled": True, "storageClass": "fast"}}},
]  # fmt: skip


def plan_of(manifests: list[dict], folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "headroom") -> Plan:
    """What the router makes of the config in the chart's ConfigMap."""
    for variable in ("HEADROOM_ADMIN_KEY", "ENGINE_KEY"):
        monkeypatch.setenv(variable, "secret-key")
    (folder / "router.yaml").write_text(one(manifests, "ConfigMap", name)["data"]["router.yaml"])
    return plan_file(folder / "router.yaml")


@pytest.mark.parametrize("values", [{}, everything()], ids=["defaults", "everything"])
def test_helm_lint_has_nothing_to_say(values):
    """But that an icon would be nice."""
    report = lint(CHART, values, strict=True, kube_version=f"v{OLDEST}.0")
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize(("values", "version"), [(everything(), OLDEST), *((each, NEWEST) for each in VARIATIONS)])
def test_every_manifest_is_of_kubernetes_own_schema(values, version):
    """Strictly: a key that the API server would drop in silence is a fault."""
    manifests = rendered(values)
    for each in manifests:
        if each["kind"] not in OWN_SCHEMAS:
            kubernetes_validate.validate(each, version, strict=True)
    places = [(each["kind"], each["metadata"]["name"], each["metadata"].get("namespace")) for each in manifests]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("values", VARIATIONS)
def test_the_router_takes_the_config(values, tmp_path, monkeypatch):
    """With every value that the chart makes of its own."""
    plan = plan_of(rendered(values), tmp_path, monkeypatch)
    assert plan.settings.listen.host == "0.0.0.0"
    assert plan.admin_digest
    redis = values.get("redis", {"enabled": True})
    assert (plan.redis is not None) == bool(redis.get("enabled", True) or redis.get("url"))
    assert len(plan.settings.discover) == len(values.get("engines", ()))
    if "autoscaler" in values:
        assert plan.settings.autoscale.port == 8081


def test_what_the_config_gives_is_over_what_the_chart_makes(tmp_path, monkeypatch):
    """Keys beside those of the chart stay; sources are added to the engines."""
    own = {"listen": {"drain_s": 5}, "slo_classes": {"default": {"e2e_ms": 9}}, "discover": [{"file": "t.yaml"}]}
    plan = plan_of(rendered(ENGINES | {"config": own}, "x"), tmp_path, monkeypatch, "x-headroom")
    assert (plan.settings.listen.drain_s, plan.settings.listen.port) == (5, 8080)
    assert [each.kind for each in plan.settings.discover] == ["kubernetes", "file"]
    assert plan.settings.slo_classes["default"].e2e_ms == 9


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "no engines: give engines"),
        (ENGINES | {"sidecar": {"enabled": True}, "redis": {"enabled": False}}, "sidecar publishes to Redis"),
        ({"engines": [{"name": "x"}]}, "service"),
        (ENGINES | {"routers": {"replicas": 3}}, "routers"),
        (ENGINES | {"router": {"replicas": 0}}, "replicas"),
        (ENGINES | {"router": {"replicas": "3"}}, "replicas"),
        (ENGINES | {"router": {"env": [{"value": "x"}]}}, "name"),
        (ENGINES | {"router": {"resources": {"limit": {"memory": "2Gi"}}}}, "limit"),
        (ENGINES | {"router": {"disruptionBudget": {"maxUnavailable": "half"}}}, "maxUnavailable"),
        (ENGINES | {"service": {"port": 70_000}}, "port"),
        (ENGINES | {"redis": {"enabled": False, "url": "10.0.0.1:6379"}}, "url"),
        (ENGINES | {"networkPolicy": {"clients": [{"podSelectors": {}}]}}, "podSelectors"),
        (ENGINES | {"monitoring": {"serviceMonitor": {"enabled": True, "interval": "15"}}}, "interval"),
        (ENGINES | {"autoscaler": {"variants": {"v": {"max_replica": 3}}}}, "max_replica"),
        (ENGINES | {"autoscaler": {"variants": {"v": {"max_replicas": "many"}}}}, "max_replicas"),
        (ENGINES | {"autoscaler": {"workloads": [{"variant": "v", "name": "Llama"}]}}, "name"),
        (ENGINES | {"autoscaler": {"workloads": [{"variant": "v", "name": "l", "kind": "Job"}]}}, "kind"),
        (ENGINES | {"config": {"slo_clases": {}}}, "slo_clases"),
        (ENGINES | {"config": {"autoscale": {"periods_s": 5}}}, "periods_s"),
        (ENGINES | {"config": {"listen": {"port": 9000}}}, "config.listen.port: probes and Services"),
        (ENGINES | {"config": {"listen": {"host": "127.0.0.1"}}}, "config.listen.host"),
        (ENGINES | {"config": {"listen": {"tls": {"cert": "c", "key": "k"}}}}, "config.listen.tls"),
        (SCALED | {"config": {"autoscale": {"inside": True}}}, "two autoscalers"),
        (SCALED | {"config": {"autoscale": {"port": 9}}}, "config.autoscale.port"),
        (SCALED | {"redis": {"enabled": False}}, "autoscaler reads the routers' demand in Redis"),
        (
            ENGINES
            | {"autoscaler": {"enabled": True, "workloads": WORKLOADS}, "config": {"autoscale": {"target": "keda"}}},
            "two targets",
        ),
        (ENGINES | {"autoscaler": {"workloads": WORKLOADS}}, "no use without autoscaler.enabled"),
        (SCALED | {"config": {"autoscale": {"target": KUBERNETES}}}, "kubernetes has its rights"),
        (ENGINES | {"config": {"autoscale": {"inside": True, "target": KUBERNETES}}}, "kubernetes has its rights"),
        (
            ENGINES | {"config": {"autoscale": {"inside": True, "election": {"by": "kubernetes"}}}},
            "no rights to a Lease",
        ),
    ],
)
def test_values_that_cannot_be_are_refused(values, why):
    """With the key at fault, before anything is installed."""
    with pytest.raises(HelmError, match=why):
        rendered(values)


def pods(manifests):
    """The pod templates, by the name of their Deployment."""
    return {each["metadata"]["name"]: each["spec"]["template"] for each in manifests if each["kind"] == "Deployment"}


def matches(selector, labels):
    return selector.items() <= labels.items()


def test_every_selector_finds_its_own_pods_and_no_others():
    """Services, budgets and network policies; and every port that is named is there."""
    manifests = of_everything()
    templates = pods(manifests)
    for each in manifests:
        if each["kind"] == "Service":
            selector = each["spec"]["selector"]
        elif each["kind"] in {"PodDisruptionBudget", "NetworkPolicy"}:
            selector = each["spec"].get("selector", each["spec"].get("podSelector"))["matchLabels"]
        else:
            continue
        name = each["metadata"]["name"]
        found = [name for name, template in templates.items() if matches(selector, template["metadata"]["labels"])]
        assert found == [name]
        ports = {port["name"] for c in templates[name]["spec"]["containers"] for port in c.get("ports", ())}
        if each["kind"] == "Service":
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
        if each["kind"] == "NetworkPolicy":
            assert {p["port"] for rule in each["spec"].get("ingress", ()) for p in rule["ports"]} <= ports


def test_the_shared_state_is_for_the_releases_own_processes():
    """The peers of its policy are pods of this release, none else where no engine announces itself."""
    templates = pods(of_everything())
    peers = peers_of(of_everything(), "headroom-redis")
    allowed = {
        name
        for peer in peers
        for name, template in templates.items()
        if matches(peer["podSelector"]["matchLabels"], template["metadata"]["labels"])
    }
    assert allowed == {"headroom", "headroom-autoscaler", "headroom-sidecar"}
    assert all(peer.keys() == {"podSelector"} for peer in peers)


def peers_of(manifests, name):
    """Who may connect by the NetworkPolicy of that name."""
    (rule,) = one(manifests, "NetworkPolicy", name)["spec"]["ingress"]
    return rule.get("from")


def test_engines_that_announce_themselves_reach_the_shared_state():
    """By default from the namespace of the release, else from where the values have them."""
    registered = {"config": {"discover": [{"redis": {}}]}}
    own = peers_of(rendered(ENGINES), "headroom-redis")
    assert peers_of(rendered(registered), "headroom-redis") == [*own, {"podSelector": {}}]
    engines = [{"namespaceSelector": {"matchLabels": {"team": "engines"}}}]
    given = registered | {"networkPolicy": {"engines": engines}}
    assert peers_of(rendered(given), "headroom-redis") == [*own, *engines]
    assert peers_of(rendered(ENGINES | {"networkPolicy": {"engines": engines}}), "headroom-redis") == own


def test_routers_reach_each_others_mesh(tmp_path, monkeypatch):
    """They alone, at the ports of its workers; a config without a mesh opens none."""
    monkeypatch.setenv("MESH_KEY", "0123456789abcdef")
    mesh = {"key": "${MESH_KEY}"}
    for config, ports in (
        ({"state": {"mesh": mesh}}, [{"port": 9003, "endPort": 9003}]),
        ({"state": {"mesh": mesh | {"port": 9100}}, "listen": {"workers": 3}}, [{"port": 9100, "endPort": 9102}]),
        ({"state": {"mesh": mesh | {"port": 0}}}, None),
    ):
        manifests = rendered(ENGINES | {"config": config})
        assert plan_of(manifests, tmp_path, monkeypatch).settings.state.mesh.port in {9003, 9100, 0}
        policy = one(manifests, "NetworkPolicy", "headroom")["spec"]
        (rule,) = policy["ingress"][1:]
        assert (rule["from"], rule.get("ports")) == ([{"podSelector": policy["podSelector"]}], ports)
    assert len(one(rendered(ENGINES), "NetworkPolicy", "headroom")["spec"]["ingress"]) == 1


def test_a_list_of_clients_does_not_keep_prometheus_out():
    """Routers have one port for both; without a list everybody may connect."""
    clients = [{"namespaceSelector": {"matchLabels": {"team": "chat"}}}]
    monitoring = [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}]
    prometheus = {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}
    autoscaler = one(of_everything(), "NetworkPolicy", "headroom-autoscaler")["spec"]["podSelector"]

    def peers(**given):
        return peers_of(rendered(ENGINES | {"networkPolicy": given}), "headroom")

    assert peers() is None
    assert peers(monitoring=monitoring) is None
    by_default = [{"namespaceSelector": {}, "podSelector": prometheus}]
    assert peers(clients=clients) == [*clients, *by_default, {"podSelector": autoscaler}]
    assert peers(clients=clients, monitoring=monitoring) == [*clients, *monitoring, {"podSelector": autoscaler}]


@pytest.mark.parametrize(
    ("values", "part", "port"),
    [
        (SCALED | {"config": {"autoscale": {"target": "keda"}}}, "autoscaler", 9300),
        (
            ENGINES | {"config": {"autoscale": {"target": {"name": "keda", "port": 9301}, "inside": True}}},
            "router",
            9301,
        ),
    ],
)
def test_keda_reaches_whatever_runs_the_autoscaler(values, part, port):
    """A Service, the port of the pods, and the policy agree; by default its own namespace may connect."""
    manifests = rendered(values)
    name = {"router": "headroom", "autoscaler": "headroom-autoscaler"}[part]
    service = one(manifests, "Service", "headroom-keda")["spec"]
    assert service["ports"] == [{"name": "keda", "port": port, "targetPort": "keda"}]
    found = [each for each, pod in pods(manifests).items() if matches(service["selector"], pod["metadata"]["labels"])]
    assert found == [name]
    (container,) = pods(manifests)[name]["spec"]["containers"]
    assert {"name": "keda", "containerPort": port} in container["ports"]
    rules = one(manifests, "NetworkPolicy", name)["spec"]["ingress"]
    (rule,) = [each for each in rules if {"port": "keda"} in each.get("ports", ())]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}]
    own = [{"podSelector": {"matchLabels": {"app": "keda-operator"}}}]
    rules = one(rendered(values | {"networkPolicy": {"keda": own}}), "NetworkPolicy", name)["spec"]["ingress"]
    assert own in [each.get("from") for each in rules]


def test_without_keda_nothing_listens_for_it():
    """Neither a Service nor a port."""
    for values in (everything(), SCALED):
        manifests = rendered(values)
        assert not [each for each in manifests if each["metadata"]["name"].endswith("-keda")]
        assert "keda" not in str([pods(manifests), *(each for each in manifests if each["kind"] == "NetworkPolicy")])


def test_an_upgrade_of_the_chart_leaves_redis_running(tmp_path):
    """Its pod template is the same under another version: what is older than seconds in it is not lost."""
    newer = tmp_path / "headroom"
    shutil.copytree(CHART, newer)
    chart = newer / "Chart.yaml"
    parsed = yaml.safe_load(chart.read_text())
    chart.write_text(yaml.safe_dump(parsed | {"version": "99.1.2", "appVersion": "99.1.2"}))
    before, after = pods(rendered(ENGINES)), pods(rendered(ENGINES, folder=newer))
    assert before["headroom"] != after["headroom"]
    assert before["headroom-redis"] == after["headroom-redis"]


def test_the_shared_state_may_be_kept_on_a_volume():
    """Of its own, which uninstalling leaves."""
    assert not [each for each in rendered(ENGINES) if each["kind"] == "PersistentVolumeClaim"]
    manifests = rendered(ENGINES | {"redis": {"persistence": {"enabled": True, "size": "2Gi", "storageClass": "fast"}}})
    claim = one(manifests, "PersistentVolumeClaim", "headroom-redis")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert (claim["spec"]["resources"]["requests"]["storage"], claim["spec"]["storageClassName"]) == ("2Gi", "fast")
    spec = pods(manifests)["headroom-redis"]["spec"]
    assert spec["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": "headroom-redis"}}]
    assert spec["containers"][0]["args"] == ["--save", "", "--appendonly", "yes", "--dir", "/data"]


def test_a_lease_of_kubernetes_has_its_rights_with_any_target():
    """Under the name that the config gives it."""
    own = {
        "autoscale": {"target": {"name": "webhook", "url": "http://s"}, "election": {"by": "kubernetes", "name": "l"}}
    }
    manifests = rendered(SCALED | {"config": own})
    rules = one(manifests, "Role", "headroom-autoscaler-election")["rules"]
    assert [rule.get("resourceNames") for rule in rules] == [None, ["l"]]
    assert pods(manifests)["headroom-autoscaler"]["spec"]["automountServiceAccountToken"] is True


def test_servers_that_the_config_names_are_a_shared_state_too(tmp_path, monkeypatch):
    """For sidecar and autoscaler, without a server of the chart."""
    own = {"state": {"redis": {"urls": ["redis://a:6379"]}}}
    for enabled in (False, True):
        values = {"config": own, "redis": {"enabled": enabled}, "sidecar": {"enabled": True}}
        manifests = rendered(SCALED | values)
        assert {"headroom-sidecar", "headroom-autoscaler"} <= pods(manifests).keys()
        assert [seed.host for seed in plan_of(manifests, tmp_path, monkeypatch).redis.seeds] == ["a"]


def test_the_schema_has_the_keys_of_the_config():
    """Of each section that is no list and no mapping of names: what a router would refuse, an install refuses."""
    known = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]["properties"]
    assert known.keys() == Settings.model_fields.keys()
    for name, given in Settings.model_fields.items():
        if get_origin(given.annotation) not in {tuple, dict}:
            kinds = [given.annotation, *get_args(given.annotation)]
            for section in (each for each in kinds if isinstance(each, type) and issubclass(each, Section)):
                assert known[name]["properties"].keys() == section.model_fields.keys(), name


def test_sources_of_the_config_have_their_rights_like_engines():
    """A Service in either form, a selector; what is read at a url needs none here."""
    discover = [
        {"kubernetes": "vllm"},
        {"kubernetes": {"service": "sglang", "namespace": "other"}},
        {"kubernetes": {"selector": "app=x", "namespace": "third"}},
        {"kubernetes": {"service": "far", "namespace": "far", "url": "http://127.0.0.1:8001"}},
        {"file": "t.yaml"},
    ]
    manifests = rendered({"config": {"discover": discover}, "sidecar": {"enabled": True}})
    roles = {each["metadata"]["namespace"]: each["rules"] for each in manifests if each["kind"] == "Role"}
    assert roles.keys() == {"llm", "other", "third"}
    assert [rules[0].get("resourceNames") for rules in roles.values()] == [["vllm"], ["sglang"], None]
    assert roles["third"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]
    bound = {each["metadata"]["namespace"] for each in manifests if each["kind"] == "RoleBinding"}
    assert bound == roles.keys()
    tokens = {name: each["spec"]["automountServiceAccountToken"] for name, each in pods(manifests).items()}
    assert tokens == {"headroom": True, "headroom-sidecar": True, "headroom-redis": False}


def test_the_autoscaler_has_the_facts_of_every_variant(tmp_path, monkeypatch):
    """It reads no pods: what a replica is comes from the values, else from routers while one runs."""
    facts = {"card": "h100", "model": "llama-3.1-8b", "models": ["m"], "variant": "big"}
    engines = [{"service": "vllm", "defaults": facts}]
    scaled = {"autoscaler": {"enabled": True, "variants": {"big": {"max_replicas": 3}}}}
    plan = plan_of(rendered({"engines": engines} | scaled), tmp_path, monkeypatch)
    assert plan.patterns["big"].models == ("m",)
    assert plan.patterns["big"].labels["card"] == "h100-sxm"
    assert plan.settings.autoscale.variants["big"].max_replicas == 3
    listed = [{"name": "a", "url": "http://a"} | facts]
    assert not plan_of(rendered({"config": {"backends": listed}} | scaled), tmp_path, monkeypatch).patterns
    del facts["models"]
    assert not plan_of(rendered({"engines": engines} | scaled), tmp_path, monkeypatch).patterns
    scaled["autoscaler"]["variants"]["big"]["min_replicas"] = 0
    with pytest.raises(HelmError, match=r"autoscaler\.variants\.big: min_replicas is 0: give replica"):
        rendered({"engines": engines} | scaled)


def test_a_router_that_ends_first_waits_then_drains_within_its_grace():
    """preStop, then listen.drain_s, then what is left: the kubelet kills none of its streams."""
    spec = pods(of_everything())["headroom"]["spec"]
    (router,) = spec["containers"]
    sleep_s = router["lifecycle"]["preStop"]["sleep"]["seconds"]
    config = yaml.safe_load(one(of_everything(), "ConfigMap", "headroom")["data"]["router.yaml"])
    assert spec["terminationGracePeriodSeconds"] >= sleep_s + config["listen"]["drain_s"] + 10
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= router.keys()


def test_no_process_is_root_or_writes_to_its_image():
    """Every container of the chart."""
    for template in pods(of_everything()).values():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}


def test_a_change_of_the_config_restarts_routers_only_where_a_reload_cannot_take_it():
    """The annotation of the pods changes with listen, upstream, state and record, and with the autoscaler inside."""

    def checksum(config):
        return pods(rendered(ENGINES | {"config": config}))["headroom"]["metadata"]["annotations"]["checksum/restart"]

    base = checksum({})
    assert checksum({"slo_classes": {"default": {"ttft_ms": 1}}, "policy": {"routing": "least_work"}}) == base
    for section in ({"listen": {"drain_s": 1}}, {"upstream": {"stall_s": 1}}, {"state": {"pool": "b"}}):
        assert checksum(section) != base
    inside = [checksum({"autoscale": {"inside": True, "election": {"lease_s": each}}}) for each in (15, 30)]
    assert len({base, *inside}) == 3
    assert checksum({"autoscale": {"inside": True, "period_s": 9, "election": {"lease_s": 15}}}) == inside[0]


def test_an_autoscaler_is_started_again_where_its_lease_is_kept_otherwise():
    """The election and the file of its memory cannot change while it runs; its period can."""

    def annotations(config):
        manifests = rendered(SCALED | {"config": {"autoscale": config}})
        return pods(manifests)["headroom-autoscaler"]["metadata"]["annotations"]

    base = annotations({"period_s": 9})
    assert annotations({"period_s": 5}) == base
    assert annotations({"election": {"by": "kubernetes"}}) != base
    assert annotations({"memory_file": "/tmp/memory.json"}) != base


async def test_the_rights_of_discovery_are_those_that_it_uses():
    """Each request that a router sends is allowed by the Role, and the Role allows no more."""
    used = set()
    async with WatchedApi("llm") as api:
        api.put("Service", {"metadata": {"name": "llama-h100"}, "spec": {"selector": {"app": "x"}}})
        target = {"kind": "Pod", "name": "of-another-selector"}
        labels = {"kubernetes.io/service-name": "llama-h100"}
        endpoints, ports = [{"addresses": ["10.0.0.1"], "targetRef": target}], [{"port": 8000}]
        given = {"metadata": {"name": "a", "labels": labels}, "addressType": "IPv4"}
        api.put("EndpointSlice", given | {"endpoints": endpoints, "ports": ports})
        source = PodsOfService(KubernetesSource(service="llama-h100", url=api.url, namespace="llm"))
        sets = source.sets()
        assert await anext(sets) == ()
        await until(lambda: api.watches == 3)
        for path in api.log:
            parts = urlsplit(path)
            names, query = parts.path.strip("/").split("/"), parse_qs(parts.query)
            group = names[1] if names[0] == "apis" else ""
            rest = names[names.index("namespaces") + 2 :]
            verb = "watch" if "watch" in query else ("list" if len(rest) == 1 else "get")
            (field,) = query.get("fieldSelector", [""])  # with a name the right to that one object is enough
            used.add((group, rest[0], field.removeprefix("metadata.name="), verb))
        await sets.aclose()
    role = one(of_everything(), "Role", "headroom-discovery", "llm")
    assert used == {
        (group, resource, name, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }
    binding = one(of_everything(), "RoleBinding", "headroom-discovery", "other")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "headroom", "namespace": "llm"}]


def test_only_what_calls_the_api_server_has_a_token():
    """Redis never, routers that are given their backends not either."""
    mounted = {name: t["spec"]["automountServiceAccountToken"] for name, t in pods(of_everything()).items()}
    assert mounted == {
        "headroom": True, "headroom-sidecar": True, "headroom-autoscaler": True, "headroom-redis": False,
    }  # fmt: skip
    listed = rendered({"config": {"backends": [{"name": "a", "url": "http://a"}]}, "autoscaler": {"enabled": True}})
    assert not any(template["spec"]["automountServiceAccountToken"] for template in pods(listed).values())
    assert not [each for each in listed if each["kind"] in {"Role", "RoleBinding"}]


def test_dashboard_and_alerts_are_those_of_this_repository():
    """They are not copies that grow old."""
    dashboard = one(of_everything(), "ConfigMap", "headroom-dashboard")["data"]["headroom.json"]
    assert json.loads(dashboard) == json.loads((ROOT / "deploy/grafana/dashboards/headroom.json").read_text())
    rules = one(of_everything(), "PrometheusRule", "headroom")["spec"]
    assert rules == yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())


def test_the_chart_has_the_version_of_the_package():
    """Its image is tagged with it."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_an_admin_key_of_ones_own_makes_no_secret():
    """Else one with a random key is made."""
    own = rendered(ENGINES | {"adminKey": {"existingSecret": "mine", "key": "k"}})
    assert not [each for each in own if each["kind"] == "Secret"]
    (env,) = pods(own)["headroom"]["spec"]["containers"][0]["env"]
    assert env["valueFrom"]["secretKeyRef"] == {"name": "mine", "key": "k"}
    made = one(rendered(ENGINES), "Secret", "headroom")
    assert len(made["data"]["admin-key"]) > 32
