"""What the chart renders."""

import pytest
import yaml
from kubernetes_validate.utils import latest_version, validate

from fairlead_operator.decide.node_prices import OpenCostSource
from fairlead_operator.decide.pricing import parse_prices
from fairlead_operator.decide.rates import card_from_seeds
from fairlead_operator.ledger.main import read_settings as ledger_settings
from fairlead_operator.oidc import parse_providers
from fairlead_operator.settings import read_settings as operator_settings
from fairlead_router.settings import read_settings as router_settings
from tests.builders.chart import (
    ALL_OPTIONS,
    CHART,
    PROGRAMS,
    Object,
    environment,
    find,
    helm,
    objects,
    own_part,
    pod_spec,
    pod_specs,
    refusal,
    render,
)
from tests.golden_files import assert_golden

OLDEST, NEWEST = "1.31", latest_version()
NON_ROOT = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
LOCKED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
H100 = "NVIDIA-H100-80GB-HBM3"


@pytest.fixture(params=[{}, ALL_OPTIONS], ids=["default", "all-options"])
def rendered(request: pytest.FixtureRequest) -> list[Object]:
    return objects(request.param)


@pytest.mark.parametrize(("name", "values"), [("default", {}), ("all-options", ALL_OPTIONS)])
def test_the_rendered_text_is_the_golden_file(name: str, values: Object) -> None:
    assert_golden(f"chart/{name}.yaml", own_part(render(values)))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_knows_every_field_of_every_object(rendered: list[Object], version: str) -> None:
    for one in rendered:
        if one["apiVersion"].startswith("monitoring.coreos.com/"):
            continue
        validate(one, version, strict=True)


def test_a_kubernetes_that_is_too_old_is_refused() -> None:
    run = helm("template", "fairlead", str(CHART), "--kube-version=1.30.9")
    assert run.returncode != 0
    assert "requires kubeVersion: >=1.31.0-0" in run.stderr


def test_every_pod_is_locked_down(rendered: list[Object]) -> None:
    specs = dict(pod_specs(rendered))
    assert set(specs) == {"fairlead-operator", "fairlead-ledger", "fairlead-gateway", "fairlead-check"}
    for spec in specs.values():
        assert NON_ROOT.items() <= spec["securityContext"].items()
        assert [container["securityContext"] for container in spec["containers"]] == [LOCKED]
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
        assert all("hostPath" not in volume for volume in spec["volumes"])


def test_every_container_says_what_it_needs(rendered: list[Object]) -> None:
    for _, spec in pod_specs(rendered):
        (container,) = spec["containers"]
        assert {"cpu", "memory"} == container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]


def test_no_pod_gets_service_links(rendered: list[Object]) -> None:
    assert all(spec["enableServiceLinks"] is False for _, spec in pod_specs(rendered))


def test_only_operator_and_ledger_get_a_token_for_the_api_server(rendered: list[Object]) -> None:
    mounted = {name for name, spec in pod_specs(rendered) if spec["automountServiceAccountToken"]}
    assert mounted == {"fairlead-operator", "fairlead-ledger"}
    accounts = [one for one in rendered if one["kind"] == "ServiceAccount"]
    assert len(accounts) == len(PROGRAMS)
    assert all(account["automountServiceAccountToken"] is False for account in accounts)


@pytest.mark.parametrize(
    ("program", "names"),
    [("operator", ["ledger", "signals"]), ("ledger", []), ("gateway", ["control", "ledger", "router"])],
)
def test_each_program_has_the_tokens_that_it_shows_and_no_other(program: str, names: list[str]) -> None:
    spec = pod_spec(objects(), f"fairlead-{program}")
    sources = [
        source["serviceAccountToken"]
        for volume in spec["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
    ]
    expected = [{"path": name, "audience": f"fairlead.dev/{name}", "expirationSeconds": 3600} for name in names]
    assert sources == expected
    mounts = [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "tokens"]
    assert mounts == (["/var/run/fairlead/tokens"] if names else [])


def test_the_operator_is_told_what_it_reads() -> None:
    spec = pod_spec(objects(ALL_OPTIONS, namespace="ops"), "fairlead-operator")
    assert environment(spec) == {
        "FAIRLEAD_NAMESPACE": None,
        "FAIRLEAD_POD_NAME": None,
        "HOME": "/tmp",
        "FAIRLEAD_PLATFORM_NAMESPACES": "ai-platform,ml,ops",
        "FAIRLEAD_OPERATOR_URL": "http://fairlead-operator.ops:8080",
        "FAIRLEAD_LEDGER_URL": "http://fairlead-ledger.ops:8080",
        "FAIRLEAD_GATEWAY_URL": "https://fairlead-gateway.ops",
        "FAIRLEAD_TOKENS_DIR": "/var/run/fairlead/tokens",
        "FAIRLEAD_PRICES_FILE": "/etc/fairlead/prices.yaml",
        "FAIRLEAD_OIDC_FILE": "/etc/fairlead-oidc/oidc.yaml",
        "FAIRLEAD_ROUTER_IMAGE": "registry.example.com/fairlead/fairlead-router:0.1.0-rc.1",
        "FAIRLEAD_ENGINE_IMAGE": "registry.example.com/vllm:v0.32.0",
        "FAIRLEAD_HUGGING_FACE_ENDPOINT": "http://mirror.models:8080",
        "FAIRLEAD_UNBUDGETED_NAMESPACES": "Reject",
        "FAIRLEAD_LOG_LEVEL": "debug",
    }


def test_the_ledger_is_told_what_it_reads() -> None:
    spec = pod_spec(objects(ALL_OPTIONS, namespace="ops"), "fairlead-ledger")
    assert environment(spec) == {
        "FAIRLEAD_NAMESPACE": None,
        "HOME": "/tmp",
        "FAIRLEAD_PLATFORM_NAMESPACES": "ai-platform,ml,ops",
        "FAIRLEAD_DATABASE": "/var/lib/fairlead/ledger.db",
        "FAIRLEAD_SYNCHRONOUS_STANDBY": "false",
    }


POSTGRESQL: Object = {"ledger": {"replicas": 2, "database": {"secretName": "ledger-database", "port": 6432}}}


def test_on_postgresql_the_ledger_is_a_deployment_without_a_volume_of_its_own() -> None:
    rendered = objects(POSTGRESQL)
    kinds = {item["kind"]: item for item in rendered if item["metadata"]["name"] == "fairlead-ledger"}
    assert "StatefulSet" not in kinds
    assert (kinds["Deployment"]["spec"]["replicas"], kinds["PodDisruptionBudget"]["spec"]["minAvailable"]) == (2, 1)
    spec = kinds["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    (database,) = [entry for entry in container["env"] if entry["name"] == "FAIRLEAD_DATABASE"]
    assert database["valueFrom"] == {"secretKeyRef": {"name": "ledger-database", "key": "url"}}
    assert [mount["name"] for mount in container["volumeMounts"]] == ["tmp"]
    assert "--database" not in container["command"]


def test_several_ledgers_on_sqlite_are_refused() -> None:
    assert "ledger.replicas above 1 needs PostgreSQL" in refusal({"ledger": {"replicas": 2}})


def test_the_gateway_is_told_what_it_reads() -> None:
    spec = pod_spec(objects(ALL_OPTIONS, namespace="ops"), "fairlead-gateway")
    assert environment(spec) == {
        "FAIRLEAD_NAMESPACE": None,
        "FAIRLEAD_POD_NAME": None,
        "HOME": "/tmp",
        "FAIRLEAD_OPERATOR_URL": "http://fairlead-operator.ops:8080",
        "FAIRLEAD_LEDGER_URL": "http://fairlead-ledger.ops:8080",
        "FAIRLEAD_TOKENS_DIR": "/var/run/fairlead/tokens",
        "FAIRLEAD_STATE_DIR": "/var/lib/fairlead",
        "FAIRLEAD_DRAIN_TIMEOUT": "900",
        "FAIRLEAD_ACCESS_LOG": "0.01",
        "FAIRLEAD_OTLP_ENDPOINT": "http://otel-collector.monitoring:4318",
        "FAIRLEAD_TRACE_SHARE": "0.5",
        "FAIRLEAD_TLS_CERT": "/etc/fairlead-tls/tls.crt",
        "FAIRLEAD_TLS_KEY": "/etc/fairlead-tls/tls.key",
    }


def test_the_programs_understand_their_environment() -> None:
    rendered = objects(ALL_OPTIONS, namespace="ops")
    told = {name: environment(spec) for name, spec in pod_specs(rendered) if name != "fairlead-check"}
    given = {name: {key: value or "ops" for key, value in env.items()} for name, env in told.items()}
    operator = operator_settings(given["fairlead-operator"])
    assert operator.platform_namespaces == ("ai-platform", "ml", "ops")
    assert operator.unbudgeted_namespaces == "Reject"
    (container,) = pod_spec(rendered, "fairlead-ledger")["containers"]
    ledger = ledger_settings(container["command"][1:], given["fairlead-ledger"])
    assert (ledger.host, ledger.port, ledger.rules.release) == ("0.0.0.0", 8080, "ops")  # noqa: S104 - a pod's own address
    assert ledger.rules.platform == {"ai-platform", "ml", "ops"}
    router = router_settings([], given["fairlead-gateway"])
    assert (router.port, router.admin_port, router.drain_timeout_s, router.pool) == (8000, 9090, 900.0, "")
    assert (router.access_log, router.trace_share, str(router.tls_key)) == (0.01, 0.5, "/etc/fairlead-tls/tls.key")


def test_the_release_namespace_is_a_platform_namespace_whatever_the_values_say() -> None:
    for program in ("operator", "ledger"):
        assert environment(pod_spec(objects(), f"fairlead-{program}"))["FAIRLEAD_PLATFORM_NAMESPACES"] == "fairlead"
        named = objects({"platformNamespaces": ["fairlead", "b"]})
        assert environment(pod_spec(named, f"fairlead-{program}"))["FAIRLEAD_PLATFORM_NAMESPACES"] == "b,fairlead"


def test_images_are_named_by_registry_and_tag() -> None:
    default = {name: spec["containers"][0]["image"] for name, spec in pod_specs(objects())}
    assert default == {
        "fairlead-operator": "fairlead-operator:0.1.0",
        "fairlead-ledger": "fairlead-operator:0.1.0",
        "fairlead-gateway": "fairlead-router:0.1.0",
        "fairlead-check": "fairlead-operator:0.1.0",
    }
    local = pod_spec(objects({"image": {"registry": "localhost"}}), "fairlead-gateway")
    assert local["containers"][0]["image"] == "localhost/fairlead-router:0.1.0"


def test_names_do_not_depend_on_the_release() -> None:
    other = yaml.safe_load_all(helm("template", "other", str(CHART), "--namespace=fairlead").stdout)
    names = {(one["kind"], one["metadata"]["name"]) for one in other if one and "Admission" not in one["kind"]}
    assert names <= {(one["kind"], one["metadata"]["name"]) for one in objects()}


def test_services_reach_the_pods_that_they_are_for(rendered: list[Object]) -> None:
    for program in PROGRAMS:
        service = find(rendered, "Service", f"fairlead-{program}")
        kind = "StatefulSet" if program == "ledger" else "Deployment"
        labels = find(rendered, kind, f"fairlead-{program}")["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
        assert labels["app.kubernetes.io/name"] == f"fairlead-{program}"
    ports = {program: find(rendered, "Service", f"fairlead-{program}")["spec"]["ports"] for program in PROGRAMS}
    https = {"name": "https", "port": 443, "targetPort": "http"}
    assert ports["gateway"] in ([{"name": "http", "port": 80, "targetPort": "http"}], [https])
    assert ports["operator"] == ports["ledger"] == [{"name": "http", "port": 8080, "targetPort": "http"}]


def test_one_replica_is_neither_protected_nor_spread() -> None:
    one = objects({"gateway": {"replicas": 1}, "operator": {"replicas": 1}})
    assert not [item for item in one if item["kind"] == "PodDisruptionBudget"]
    assert not [name for name, spec in pod_specs(one) if "topologySpreadConstraints" in spec]


def test_several_replicas_keep_one_and_are_spread() -> None:
    several = objects(ALL_OPTIONS)
    for program in ("operator", "gateway"):
        budget = find(several, "PodDisruptionBudget", f"fairlead-{program}")["spec"]
        assert budget["minAvailable"] == 1
        for constraint in pod_spec(several, f"fairlead-{program}")["topologySpreadConstraints"]:
            assert constraint["labelSelector"] == budget["selector"]
            assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"


def test_the_gateway_outlives_its_drain() -> None:
    for values, drain in (({}, 600), (ALL_OPTIONS, 900)):
        spec = pod_spec(objects(values), "fairlead-gateway")
        assert environment(spec)["FAIRLEAD_DRAIN_TIMEOUT"] == str(drain)
        assert spec["terminationGracePeriodSeconds"] == drain + 30


def test_the_ledger_is_one_pod_with_its_volume() -> None:
    ledger = find(objects(), "StatefulSet", "fairlead-ledger")["spec"]
    assert ledger["replicas"] == 1
    assert ledger["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    (claim,) = ledger["volumeClaimTemplates"]
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}
    (container,) = ledger["template"]["spec"]["containers"]
    assert {"name": "FAIRLEAD_DATABASE", "value": "/var/lib/fairlead/ledger.db"} in container["env"]
    assert {"name": "data", "mountPath": "/var/lib/fairlead"} in container["volumeMounts"]
    assert ledger["template"]["spec"]["securityContext"]["fsGroup"] == 65532


def test_the_operator_reads_every_price_and_seed_of_the_values() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    prices = parse_prices(find(objects(), "ConfigMap", "fairlead-prices")["data"]["prices.yaml"])
    assert prices.problems == ()
    assert len(prices.accelerators) == len(values["prices"]["accelerators"])
    assert set(prices.seeds or {}) == set(values["rateCard"]["seeds"])
    dollars = {dict(one.node_selector)["nvidia.com/gpu.product"]: one.per_hour for one in prices.accelerators}
    assert dollars[H100] == 2_950_000_000
    assert dollars["NVIDIA-L40S"] == 1_550_000_000
    assert dollars["NVIDIA-H200"] == 3_450_000_000


def test_the_seed_card_of_an_h100_is_the_documented_one() -> None:
    prices = parse_prices(find(objects(), "ConfigMap", "fairlead-prices")["data"]["prices.yaml"])
    rates = card_from_seeds(2_950_000_000, (prices.seeds or {})[H100])
    assert rates.prompt_pico == pytest.approx(29_500, abs=5)
    assert rates.cached_pico == pytest.approx(2_950, abs=1)
    assert rates.output_pico == pytest.approx(88_500, abs=5)


def test_every_priced_product_has_its_seed() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    products = {one["nodeSelector"]["nvidia.com/gpu.product"] for one in values["prices"]["accelerators"]}
    assert products | {"default"} == set(values["rateCard"]["seeds"])


def test_the_operator_is_told_where_open_cost_is_and_mounts_what_that_needs() -> None:
    source = parse_prices(find(objects(ALL_OPTIONS), "ConfigMap", "fairlead-prices")["data"]["prices.yaml"]).source
    assert source == OpenCostSource(
        url="https://prometheus.example.com:9443/prod",
        matchers=(("cluster", "prod"),),
        ca_file="/etc/fairlead/prometheus-ca.crt",
        headers_dir="/etc/fairlead-prometheus",
        keep_ms=7_200_000,
    )
    mounts = pod_spec(objects(ALL_OPTIONS), "fairlead-operator")["containers"][0]["volumeMounts"]
    assert {"name": "prometheus", "mountPath": source.headers_dir, "readOnly": True} in mounts


def test_prices_arrive_without_a_restart() -> None:
    deployment = find(objects(), "Deployment", "fairlead-operator")["spec"]["template"]
    assert "annotations" not in deployment["metadata"]
    (mount,) = [one for one in deployment["spec"]["containers"][0]["volumeMounts"] if one["name"] == "prices"]
    assert mount == {"name": "prices", "mountPath": "/etc/fairlead", "readOnly": True}


def test_the_operator_reads_every_oidc_provider_of_the_values_without_a_restart() -> None:
    rendered = objects(ALL_OPTIONS)
    providers, problems = parse_providers(find(rendered, "ConfigMap", "fairlead-oidc")["data"]["oidc.yaml"])
    assert problems == ()
    assert [one.issuer for one in providers] == [one["issuer"] for one in ALL_OPTIONS["oidc"]]
    assert [bool(one.jwks) for one in providers] == [True, False]
    spec = pod_spec(rendered, "fairlead-operator")
    assert {"name": "oidc", "configMap": {"name": "fairlead-oidc"}} in spec["volumes"]
    mount = {"name": "oidc", "mountPath": "/etc/fairlead-oidc", "readOnly": True}
    assert mount in spec["containers"][0]["volumeMounts"]
    assert parse_providers(find(objects(), "ConfigMap", "fairlead-oidc")["data"]["oidc.yaml"]) == ((), ())


def test_with_a_certificate_the_gateway_speaks_https_and_no_plain_http() -> None:
    rendered = objects({"tls": {"secretName": "own"}})
    (port,) = find(rendered, "Service", "fairlead-gateway")["spec"]["ports"]
    spec = pod_spec(rendered, "fairlead-gateway")
    (container,) = spec["containers"]
    assert port == {"name": "https", "port": 443, "targetPort": "http"}
    assert {"name": "tls", "secret": {"secretName": "own", "defaultMode": 0o440}} in spec["volumes"]
    assert {"name": "tls", "mountPath": "/etc/fairlead-tls", "readOnly": True} in container["volumeMounts"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/ready", "port": "admin"}
    assert pod_spec(rendered, "fairlead-check")["containers"][0]["command"][-1] == "https://fairlead-gateway.fairlead"


def test_what_is_off_leaves_nothing_in_the_gateway() -> None:
    spec = pod_spec(objects(), "fairlead-gateway")
    assert not {"FAIRLEAD_ACCESS_LOG", "FAIRLEAD_OTLP_ENDPOINT", "FAIRLEAD_TLS_CERT"} & environment(spec).keys()
    assert "tls" not in {volume["name"] for volume in spec["volumes"]}
    settings = router_settings([], {name: value or "" for name, value in environment(spec).items()})
    assert (settings.access_log, settings.otlp_endpoint, settings.tls_cert) == (0.0, "", None)


@pytest.mark.parametrize("share", [1, 0.5, 0.000001])
def test_every_share_is_one_that_the_gateway_reads(share: float) -> None:
    told = environment(pod_spec(objects({"router": {"accessLog": share}}), "fairlead-gateway"))
    assert router_settings([], {"FAIRLEAD_ACCESS_LOG": str(told["FAIRLEAD_ACCESS_LOG"])}).access_log == share


def test_the_notes_warn_of_a_load_balancer_without_tls() -> None:
    public: Object = {"gateway": {"service": {"type": "LoadBalancer"}}}
    for values, warned in ((public, True), ({**public, "tls": {"secretName": "own"}}, False)):
        run = helm("install", "fairlead", str(CHART), "--namespace=ops", "--dry-run=client", values=values)
        assert ("speaks plain HTTP" in run.stdout.split("NOTES:\n", 1)[1]) is warned


def test_the_kinds_are_installed_and_kept_as_the_values_say() -> None:
    kept = [one for one in objects() if one["kind"] == "CustomResourceDefinition"]
    assert len(kept) == 3
    assert all(one["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for one in kept)
    gone = [one for one in objects({"crds": {"keep": False}}) if one["kind"] == "CustomResourceDefinition"]
    assert not any("annotations" in one["metadata"] for one in gone)
    none = objects({"crds": {"install": False}})
    assert not [one for one in none if one["kind"] == "CustomResourceDefinition"]


def test_a_new_chart_version_alone_restarts_nothing(rendered: list[Object]) -> None:
    for one in rendered:
        if one["kind"] in {"Deployment", "StatefulSet"}:
            labels = one["spec"]["template"]["metadata"]["labels"]
            assert not {"helm.sh/chart", "app.kubernetes.io/version"} & labels.keys()


def test_the_notes_name_the_next_commands() -> None:
    run = helm("install", "fairlead", str(CHART), "--namespace=ops", "--dry-run=client")
    assert run.returncode == 0, run.stderr
    notes = run.stdout.split("NOTES:\n", 1)[1]
    assert "helm test fairlead -n ops" in notes
    assert "kubectl apply -f examples/first-pool.yaml" in notes
    assert "http://fairlead-gateway.ops/v1" in notes
    assert "LoadBalancer" not in notes


def test_helm_finds_nothing_to_say_against_the_chart() -> None:
    for values in ({}, ALL_OPTIONS):
        run = helm("lint", str(CHART), "--strict", values=values)
        assert run.returncode == 0, run.stdout
