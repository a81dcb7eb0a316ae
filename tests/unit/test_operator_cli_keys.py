"""``fairlead key``: a key is shown once and only its hash is stored; what cannot be done is said with a remedy."""

import argparse
import asyncio
import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fairlead_operator.cli import key
from fairlead_operator.cli.ask import UsageError
from fairlead_operator.cli.key import config_map, new_key, parse_expires, place
from fairlead_operator.cli.main import main
from fairlead_operator.decide.api_keys import key_fact
from tests.builders.resources import make_budget
from tests.fakes.api_server import Fault
from tests.fakes.served_cluster import ServedCluster

DAY_MS = 86_400_000


class Served(ServedCluster):
    """What these tests ask of it."""

    def event(self, about: dict[str, Any], reason: str, note: str) -> None:
        """What the operator says of an object."""
        meta = {"name": f"e-{reason.lower()}", "namespace": about["metadata"]["namespace"]}
        regarding = {"uid": about["metadata"]["uid"]}
        self.put("events", {"metadata": meta, "involvedObject": regarding, "reason": reason, "message": note})

    def stored(self, name: str, namespace: str = "support") -> dict[str, Any] | None:
        return self.server.get("configmaps", namespace, f"fairlead-key-{name}")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(key, "WAIT_S", 0.0)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    made = Served(tmp_path)
    made.put("namespaces", {"metadata": {"name": "support", "labels": {"tenant": "yes"}}})
    yield made
    made.stop()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fairlead(served: Served, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["key", *arguments, "--kubeconfig", str(served.kubeconfig)])
        found = capsys.readouterr()
        return status, found.out, found.err

    return run


def shown(out: str) -> str:
    """The key: it stands alone on its line."""
    (line,) = [line for line in out.splitlines() if line.startswith("fl_")]
    return line


# --- create


def test_a_key_is_printed_once_and_only_its_hash_is_stored(served: Served, fairlead: Run) -> None:
    status, out, err = fairlead("create", "ticket-worker", "--feature", "ticket-summary", "--expires", "90d")
    secret, body = shown(out), served.stored("ticket-worker")
    assert (status, err) == (0, "")
    assert body is not None
    assert body["data"]["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in json.dumps(body)
    assert body["immutable"] is True
    assert "ConfigMap support/fairlead-key-ticket-worker holds the hash" in out
    assert "caller   key:ticket-worker of namespace support" in out
    assert "feature  ticket-summary" in out


def test_the_operator_reads_what_the_command_writes(served: Served, fairlead: Run) -> None:
    fairlead("create", "ticket-worker", "--feature", "ticket-summary", "--expires", "90d", "-n", "search")
    body = served.stored("ticket-worker", "search")
    assert body is not None
    made = key_fact(body).key
    assert made is not None
    assert (made.namespace, made.name, made.feature) == ("search", "ticket-worker", "ticket-summary")
    assert made.expires_ms > 0


def test_without_an_end_a_key_is_good_for_ever(fairlead: Run) -> None:
    assert "expires  never" in fairlead("create", "k")[1]


def test_keys_are_256_random_bits_and_easy_to_find_in_source_code() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    for one in made:
        assert one.startswith("fl_")
        assert len(base64.urlsafe_b64decode(one.removeprefix("fl_") + "=")) == 32


def test_a_key_that_is_not_confirmed_is_not_said_to_work_everywhere(fairlead: Run) -> None:
    out = fairlead("create", "k")[1]
    assert "none was confirmed within" in out
    assert "kubectl describe configmap" in out


@pytest.mark.parametrize(
    ("reason", "note", "status"),
    [("KeyInForce", "In force on 8 of 8 routers.", 0), ("KeyRefused", "Not an API key in force: too many.", 1)],
)
def test_what_the_operator_says_of_the_key_is_printed(
    served: Served, fairlead: Run, monkeypatch: pytest.MonkeyPatch, *, reason: str, note: str, status: int
) -> None:
    original = key._confirmation

    async def answered(api: Any, made: Any, clock: Any) -> Any:
        await asyncio.to_thread(served.event, made, reason, note)
        return await original(api, made, clock)

    monkeypatch.setattr(key, "_confirmation", answered)
    found, out, _ = fairlead("create", "k")
    assert found == status
    assert note in out
    assert "within 5s" not in out


def test_an_event_about_another_object_is_not_about_this_one(served: Served, fairlead: Run) -> None:
    other = {"metadata": {"namespace": "support", "uid": "another"}}
    served.event(other, "KeyInForce", "In force on 8 of 8 routers.")
    assert "none was confirmed" in fairlead("create", "k")[1]


def test_the_budgets_that_hold_the_key_are_named(served: Served, fairlead: Run) -> None:
    selector = {"namespaceSelector": {"matchLabels": {"tenant": "yes"}}}
    others = {"namespaceSelector": {"matchLabels": {"tenant": "no"}}}
    made = [
        make_budget("own", "support"),
        make_budget("fleet", "ai-platform").spec(appliesTo=selector),
        make_budget("elsewhere", "ai-platform").spec(appliesTo=others),
        make_budget("foreign", "search"),
    ]
    for one in made:
        served.put("costbudgets", one.obj())
    assert "budgets  ai-platform/fleet, own\n" in fairlead("create", "k")[1]


def test_who_may_not_read_other_namespaces_is_told_that_there_may_be_more(served: Served, fairlead: Run) -> None:
    served.put("costbudgets", make_budget("own", "support").obj())
    served.server.faults = [Fault("GET", "/apis/fairlead.dev/v1alpha1/costbudgets", 403)]
    assert "budgets  own, and those of platform namespaces that you may not list" in fairlead("create", "k")[1]


def test_json_holds_the_same_and_nothing_else(fairlead: Run) -> None:
    status, out, _ = fairlead("create", "k", "-o", "json")
    found = json.loads(out)
    assert status == 0
    assert found["key"].startswith("fl_")
    assert (found["namespace"], found["caller"], found["state"]) == ("support", "key:k", "Unconfirmed")


def test_a_name_that_is_taken_is_said_with_a_remedy_and_changes_nothing(served: Served, fairlead: Run) -> None:
    fairlead("create", "k")
    before = served.stored("k")
    status, out, err = fairlead("create", "k")
    assert (status, out) == (1, "")
    assert "already" in err
    assert "Revoke it first" in err
    assert served.stored("k") == before


def test_who_may_not_is_told_which_role_is_enough(served: Served, fairlead: Run) -> None:
    served.server.faults = [Fault("POST", "configmaps", 403)]
    status, out, err = fairlead("create", "k")
    assert (status, out) == (1, "")
    assert "you may not create configmaps support" in err
    assert "role edit" in err


@pytest.mark.parametrize("name", ["K", "a_b", "a-", "a.b", "", "x" * 64])
def test_a_name_that_is_none_is_refused_before_anything_is_made(served: Served, fairlead: Run, name: str) -> None:
    status, _, err = fairlead("create", name)
    assert status == 2
    assert "no name for a key" in err
    assert served.server.count("POST", "configmaps") == 0


def test_a_feature_that_routers_would_refuse_is_refused(fairlead: Run) -> None:
    assert fairlead("create", "k", "--feature", "x" * 129)[0] == 2


@pytest.mark.parametrize(
    ("text", "ms"), [("90d", 90 * DAY_MS), ("12h", DAY_MS // 2), ("1h30m", 5_400_000), ("3650d", 3650 * DAY_MS)]
)
def test_lifetimes_are_days_or_durations(text: str, ms: int) -> None:
    assert parse_expires(text) == ms


@pytest.mark.parametrize("text", ["0d", "3651d", "99999d", "-1d", "d", "tomorrow", "90", "²d", "1d12h", "90000h"])
def test_a_lifetime_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write 90d, 12h or 1h30m, 3650d at most"):
        parse_expires(text)


# --- list and revoke


def test_the_list_shows_everything_but_secrets(served: Served, fairlead: Run) -> None:
    secret = shown(fairlead("create", "ticket-worker", "--feature", "ticket-summary")[1])
    bad = config_map(key.Wanted("bad", "support", "", 0), "x")
    bad["data"] = {"sha256": "short"}
    old = config_map(key.Wanted("old", "support", "", 1_000_000_000_000), "y")
    for one in (bad, old):
        served.put("configmaps", one)
    status, out, _ = fairlead("list")
    rows = {line.split()[1]: line for line in out.splitlines()}
    assert status == 0
    assert list(rows) == ["NAME", "bad", "old", "ticket-worker"]
    assert "ticket-summary" in rows["ticket-worker"]
    assert "key:ticket-worker" in rows["ticket-worker"]
    assert rows["ticket-worker"].endswith("valid")
    assert rows["old"].endswith("expired")
    assert "refused: data.sha256 must be" in rows["bad"]
    assert secret not in out
    assert hashlib.sha256(secret.encode()).hexdigest() not in out


def test_the_list_is_of_one_namespace_or_of_all(fairlead: Run) -> None:
    fairlead("create", "mine")
    fairlead("create", "theirs", "-n", "search")
    assert [one["name"] for one in json.loads(fairlead("list", "-o", "json")[1])] == ["mine"]
    everything = json.loads(fairlead("list", "-A", "-o", "json")[1])
    assert [(one["namespace"], one["name"]) for one in everything] == [("search", "theirs"), ("support", "mine")]
    assert "There are no API keys here" in fairlead("list", "-n", "empty")[1]


def test_a_revoked_key_is_gone_and_its_name_is_free(served: Served, fairlead: Run) -> None:
    first = shown(fairlead("create", "k")[1])
    status, out, _ = fairlead("revoke", "k")
    assert status == 0
    assert "key:k of namespace support is revoked" in out
    assert served.stored("k") is None
    assert shown(fairlead("create", "k")[1]) != first


def test_a_key_that_does_not_exist_cannot_be_revoked(fairlead: Run) -> None:
    status, _, err = fairlead("revoke", "k")
    assert status == 2
    assert "namespace support has no key k: see fairlead key list -n support" in err


def test_only_keys_are_revoked(served: Served, fairlead: Run) -> None:
    served.put("configmaps", {"metadata": {"name": "fairlead-key-mine", "namespace": "support"}, "data": {"a": "b"}})
    status, _, err = fairlead("revoke", "mine")
    assert status == 2
    assert "no label" in err
    assert served.stored("mine") is not None


# --- which cluster


def test_a_cluster_that_does_not_answer_is_status_three(served: Served, fairlead: Run) -> None:
    text = served.kubeconfig.read_text(encoding="utf-8").replace(served.server.url, "http://127.0.0.1:9")
    served.kubeconfig.write_text(text, encoding="utf-8")
    status, _, err = fairlead("list")
    assert status == 3
    assert "no answer from http://127.0.0.1:9" in err


def test_a_kubeconfig_that_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "list", "--kubeconfig", str(tmp_path / "none")]) == 2
    assert "--kubeconfig" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "[", "7", "apiVersion: v1\nkind: Config\n", '{"clusters": [], "contexts": [], "users": []}']
)
def test_a_kubeconfig_that_is_none_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "config").write_text(text, encoding="utf-8")
    for more in ((), ("-n", "support")):
        assert main(["key", "list", "--kubeconfig", str(tmp_path / "config"), *more]) == 2
        assert "--kubeconfig" in capsys.readouterr().err


def test_a_context_that_is_not_in_the_kubeconfig_is_said(fairlead: Run) -> None:
    status, _, err = fairlead("list", "--context", "none")
    assert status == 2
    assert "none" in err


@pytest.mark.parametrize(
    ("given", "namespace"),
    [
        ({}, "support"),
        ({"namespace": "search"}, "search"),
        ({"context": "bare"}, "default"),
        ({"context": "?"}, "support"),
    ],
)
def test_the_namespace_is_the_given_one_or_the_context_s(served: Served, given: dict[str, str], namespace: str) -> None:
    options = {"kubeconfig": str(served.kubeconfig), "context": "", "namespace": "", **given}
    assert place(argparse.Namespace(**options)) == (str(served.kubeconfig), namespace)


def test_the_environment_s_kubeconfig_is_taken(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(served.kubeconfig))
    options = argparse.Namespace(kubeconfig="", context="", namespace="")
    assert place(options) == (str(served.kubeconfig), "support")


def test_in_a_pod_the_pod_s_own_account_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(key, "DEFAULT_KUBECONFIG", str(tmp_path / "none"))
    assert place(argparse.Namespace(kubeconfig="", context="", namespace="")) == ("", "default")
