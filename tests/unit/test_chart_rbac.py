"""What the chart's accounts and roles may do: each verb that is used, and no more."""

from collections.abc import Iterator

import pytest

from tests.builders.chart import ALL_OPTIONS, Object, find, objects

GROUP = "fairlead.dev"
READ = {"get", "list", "watch"}
OWN = READ | {"create", "patch", "delete"}
WRITE = READ | {"create", "update", "patch", "delete", "deletecollection"}
ISSUER = {("", "/.well-known/openid-configuration"): {"get"}, ("", "/openid/v1/jwks"): {"get"}}

Grants = dict[tuple[str, str], set[str]]

OPERATOR: Grants = {
    (GROUP, "modelpools"): READ,
    (GROUP, "routingpolicies"): READ,
    (GROUP, "costbudgets"): READ,
    (GROUP, "modelpools/status"): {"patch"},
    (GROUP, "routingpolicies/status"): {"patch"},
    (GROUP, "costbudgets/status"): {"patch"},
    (GROUP, "modelpools/finalizers"): {"update"},
    ("", "namespaces"): READ,
    ("", "nodes"): READ,
    ("", "pods"): READ | {"patch", "delete"},
    ("", "pods/log"): {"get"},
    ("", "configmaps"): {"list", "watch"},
    ("apps", "deployments"): OWN,
    ("apps", "replicasets"): {"list"},
    ("", "services"): OWN,
    ("policy", "poddisruptionbudgets"): OWN,
    ("events.k8s.io", "events"): {"create", "patch"},
    **ISSUER,
}
"""The calls of fairlead_operator.kube: reflectors, apply, delete, status, owners, Events; and the issuer's keys."""

ROLES: dict[tuple[str, str], Grants] = {
    ("ClusterRole", "fairlead-operator"): OPERATOR,
    ("Role", "fairlead-operator"): {("coordination.k8s.io", "leases"): {"create", "get", "update"}},
    ("ClusterRole", "fairlead-ledger"): ISSUER,
    ("ClusterRole", "fairlead-view"): {
        (GROUP, "modelpools"): READ,
        (GROUP, "routingpolicies"): READ,
        (GROUP, "costbudgets"): READ,
        (GROUP, "modelpools/scale"): {"get"},
    },
    ("ClusterRole", "fairlead-edit"): {
        (GROUP, "modelpools"): WRITE,
        (GROUP, "routingpolicies"): WRITE,
        (GROUP, "modelpools/scale"): {"get", "update", "patch"},
    },
    ("ClusterRole", "fairlead-budget-editor"): {(GROUP, "costbudgets"): WRITE},
    ("ClusterRole", "fairlead-budget-viewer"): {(GROUP, "costbudgets"): READ},
}


def grants(role: Object) -> Grants:
    """What a role grants: verbs by (group, resource), or by ("", path)."""
    granted: Grants = {}
    for key, verbs in rules(role):
        granted.setdefault(key, set()).update(verbs)
    return granted


def rules(role: Object) -> Iterator[tuple[tuple[str, str], list[str]]]:
    for rule in role["rules"]:
        for group in rule.get("apiGroups", [""]):
            for resource in rule.get("resources", rule.get("nonResourceURLs", [])):
                yield (group, resource), rule["verbs"]


def roles(rendered: list[Object]) -> list[Object]:
    return [one for one in rendered if one["kind"] in {"Role", "ClusterRole"}]


def test_there_are_no_other_roles() -> None:
    rendered = roles(objects(ALL_OPTIONS))
    assert {(one["kind"], one["metadata"]["name"]) for one in rendered} == set(ROLES)


@pytest.mark.parametrize(("kind", "name"), ROLES)
def test_each_role_grants_what_is_used_and_no_more(kind: str, name: str) -> None:
    assert grants(find(objects(), kind, name)) == ROLES[kind, name]


def test_no_role_has_a_wildcard_reads_secrets_or_enters_a_pod() -> None:
    for role in roles(objects(ALL_OPTIONS)):
        for (group, resource), verbs in rules(role):
            assert "*" not in {group, *verbs}
            assert "*" not in resource
            assert (group, resource.split("/")[0]) != ("", "secrets")
            assert resource not in {"pods/exec", "pods/attach", "pods/portforward", "serviceaccounts/token"}
            assert not {"escalate", "bind", "impersonate"} & set(verbs)


def test_the_lease_is_the_only_one_that_the_operator_may_change() -> None:
    role = find(objects(), "Role", "fairlead-operator")
    assert role["metadata"]["namespace"] == "fairlead"
    for rule in role["rules"]:
        assert rule.get("resourceNames") == (None if rule["verbs"] == ["create"] else ["fairlead-operator"])


def test_accounts_are_bound_to_their_own_role_and_the_gateway_to_none() -> None:
    rendered = objects(ALL_OPTIONS, namespace="ops")
    bindings = [one for one in rendered if one["kind"] in {"RoleBinding", "ClusterRoleBinding"}]
    bound = {(one["kind"], one["roleRef"]["kind"], one["roleRef"]["name"]) for one in bindings}
    assert bound == {
        ("ClusterRoleBinding", "ClusterRole", "fairlead-operator"),
        ("RoleBinding", "Role", "fairlead-operator"),
        ("ClusterRoleBinding", "ClusterRole", "fairlead-ledger"),
    }
    for one in bindings:
        name = one["roleRef"]["name"]
        assert one["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": "ops"}]


def test_the_budget_editor_is_aggregated_to_nothing() -> None:
    def targets(name: str) -> set[str]:
        labels = find(objects(), "ClusterRole", name)["metadata"]["labels"]
        prefix = "rbac.authorization.k8s.io/aggregate-to-"
        return {label.removeprefix(prefix) for label in labels if label.startswith(prefix)}

    assert targets("fairlead-view") == {"view"}
    assert targets("fairlead-edit") == {"edit", "admin"}
    assert targets("fairlead-budget-editor") == set()
    assert targets("fairlead-budget-viewer") == set()
    assert targets("fairlead-operator") == set()
