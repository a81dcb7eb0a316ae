"""Who may talk to whom, as the chart's NetworkPolicies say it."""

import pytest

from tests.builders.chart import ALL_OPTIONS, PROGRAMS, Object, find, objects

ANYWHERE: list[Object] = [{"namespaceSelector": {}}]


def selects(program: str) -> Object:
    labels = {"app.kubernetes.io/name": f"fairlead-{program}", "app.kubernetes.io/instance": "fairlead"}
    return {"podSelector": {"matchLabels": labels}}


def policy(program: str, values: Object | None = None) -> Object:
    spec: Object = find(objects(values), "NetworkPolicy", f"fairlead-{program}")["spec"]
    return spec


def rules(spec: Object, direction: str) -> list[tuple[list[int], list[Object] | None]]:
    """Ports and peers of each rule; no peers: anywhere."""
    peers = {"ingress": "from", "egress": "to"}[direction]
    return [([port["port"] for port in rule["ports"]], rule.get(peers)) for rule in spec[direction]]


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_not_named_is_denied_in_both_directions(program: str) -> None:
    spec = policy(program)
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["podSelector"] == selects(program)["podSelector"]
    assert all(rule["ports"] for rule in (*spec["ingress"], *spec["egress"]))


@pytest.mark.parametrize(("program", "port"), [("operator", 8080), ("ledger", 8080)])
def test_pods_of_any_namespace_reach_operator_and_ledger(program: str, port: int) -> None:
    assert rules(policy(program), "ingress") == [([port], ANYWHERE)]


def test_the_gateways_admin_port_is_the_operators() -> None:
    assert rules(policy("gateway"), "ingress") == [([8000], ANYWHERE), ([9090], [selects("operator")])]


def test_monitoring_reads_the_gateways_metrics_where_its_namespaces_are_named() -> None:
    _, admin = rules(policy("gateway", {"networkPolicy": {"monitoringNamespaces": ["a", "b"]}}), "ingress")
    named = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}
    assert admin == ([9090], [selects("operator"), {"namespaceSelector": {"matchExpressions": [named]}}])


def test_a_load_balancers_clients_have_any_address() -> None:
    assert rules(policy("gateway", ALL_OPTIONS), "ingress")[0] == ([8000], None)


def test_each_program_goes_where_it_must_and_nowhere_else() -> None:
    dns: tuple[list[int], None] = ([53, 53, 5353, 5353], None)
    api: tuple[list[int], None] = ([443, 6443], None)
    ledger, operator = ([8080], [selects("ledger")]), ([8080], [selects("operator")])
    assert rules(policy("operator"), "egress") == [dns, api, ledger, ([9090], ANYWHERE)]
    assert rules(policy("ledger"), "egress") == [dns, api]
    postgresql = {"ledger": {"database": {"secretName": "ledger-database", "port": 6432}}}
    assert rules(policy("ledger", postgresql), "egress") == [dns, api, ([6432], None)]
    assert rules(policy("gateway"), "egress") == [dns, operator, ledger, ([8000], ANYWHERE)]


def test_the_operator_reaches_the_providers_that_it_asks_for_keys_and_no_other() -> None:
    provider = {"issuer": "https://dex.example.com:5556/dex", "audience": "a", "namespaceClaim": "team"}
    assert ([443, 5556], None) in rules(policy("operator", {"oidc": [provider]}), "egress")
    written = {**provider, "jwks": {"keys": [{"kty": "RSA", "n": "AA", "e": "AQAB"}]}}
    assert rules(policy("operator", {"oidc": [written]}), "egress") == rules(policy("operator"), "egress")


def test_the_operator_reaches_prometheus_where_it_asks_for_prices() -> None:
    prometheus = {"url": "http://prometheus-server.monitoring"}
    asked = rules(policy("operator", {"prometheus": prometheus, "openCost": {"enabled": True}}), "egress")
    *usual, signals = rules(policy("operator", {"prometheus": prometheus}), "egress")
    assert asked == [*usual, ([80], None), signals]
    assert [*usual, signals] == rules(policy("operator"), "egress")


@pytest.mark.parametrize(
    ("endpoint", "port"), [("http://c:4318", 4318), ("https://c.example.com/v1/traces", 443), ("http://c", 80)]
)
def test_the_gateway_reaches_the_collector_of_its_traces(endpoint: str, port: int) -> None:
    *usual, pools = rules(policy("gateway"), "egress")
    traced = rules(policy("gateway", {"router": {"tracing": {"endpoint": endpoint}}}), "egress")
    assert traced == [*usual, ([port], None), pools]


def test_network_policies_can_be_left_out() -> None:
    assert not [one for one in objects({"networkPolicy": {"enabled": False}}) if one["kind"] == "NetworkPolicy"]
