"""Who may call which model name, and who wins when two policies offer the same."""

from fairlead_operator.decide.budgets import budget_problems
from fairlead_operator.decide.models import resolve_models
from tests.builders.resources import PolicyBuilder, make_budget, make_policy

NAMESPACES = {
    "ai-platform": {},
    "support": {"tenant": "yes"},
    "search": {"tenant": "yes"},
    "other": {},
}
PLATFORM = ("ai-platform", "fairlead")


def created(policy: PolicyBuilder, day: str) -> PolicyBuilder:
    return policy.metadata(creationTimestamp=f"{day}T00:00:00Z")


def test_a_policy_serves_its_own_namespace() -> None:
    callers = resolve_models([make_policy("chat", "support").parsed()], NAMESPACES, PLATFORM)
    assert callers["support/chat"].namespaces == ("support",)


def test_a_selector_admits_the_namespaces_with_its_labels_and_its_own() -> None:
    policy = make_policy("chat").allow_labels(tenant="yes").parsed()
    assert resolve_models([policy], NAMESPACES, PLATFORM)["ai-platform/chat"].namespaces == (
        "ai-platform",
        "search",
        "support",
    )


def test_all_admits_namespaces_that_do_not_exist_yet() -> None:
    callers = resolve_models([make_policy("chat").allow_all().parsed()], NAMESPACES, PLATFORM)["ai-platform/chat"]
    assert callers.namespaces is None
    assert callers.count(len(NAMESPACES)) == 4


def test_only_platform_namespaces_export() -> None:
    callers = resolve_models([make_policy("chat", "support").allow_all().parsed()], NAMESPACES, PLATFORM)[
        "support/chat"
    ]
    assert callers.namespaces == ("support",)
    assert callers.problem is not None
    assert callers.problem.reason == "NamespaceNotAllowed"


def test_the_older_of_two_exports_wins_where_they_overlap() -> None:
    older = created(make_policy("chat").allow_labels(tenant="yes"), "2026-09-07").parsed()
    newer = created(make_policy("talk").models("chat", "talk").allow_all(), "2026-10-01").parsed()
    callers = resolve_models([newer, older], NAMESPACES, PLATFORM)
    assert callers["ai-platform/chat"].excluded == ()
    lost = callers["ai-platform/talk"]
    assert lost.excluded == (("ai-platform", "chat"), ("search", "chat"), ("support", "chat"))
    assert lost.conflicts[0].message == (
        "Model chat is exported to namespaces ai-platform, search, support by ai-platform/chat (2026-09-07, older). "
        "This policy gets no requests from there. Choose another name in spec.models."
    )


def test_a_namespaces_own_policy_conflicts_with_no_export() -> None:
    exported = created(make_policy("chat").allow_all(), "2026-09-07").parsed()
    own = created(make_policy("chat", "support"), "2026-11-01").parsed()
    callers = resolve_models([exported, own], NAMESPACES, PLATFORM)
    assert callers["support/chat"].excluded == callers["ai-platform/chat"].excluded == ()


def test_two_policies_of_one_namespace_conflict_at_home() -> None:
    older = created(make_policy("a", "support").models("chat"), "2026-09-07").parsed()
    newer = created(make_policy("b", "support").models("chat"), "2026-10-01").parsed()
    conflict = resolve_models([older, newer], NAMESPACES, PLATFORM)["support/b"].conflicts[0]
    assert conflict.message.startswith("Model chat is answered in namespace support by support/a (2026-09-07, older).")


def test_many_namespaces_are_counted_not_listed() -> None:
    many: dict[str, dict[str, str]] = {f"n{number}": {} for number in range(6)}
    older = created(make_policy("a").models("m").allow_all(), "2026-09-07").parsed()
    newer = created(make_policy("b").models("m").allow_all(), "2026-10-01").parsed()
    message = resolve_models([older, newer], many, PLATFORM)["ai-platform/b"].conflicts[0].message
    assert "to namespaces ai-platform, n0, n1 and 4 more by" in message


def test_a_budget_of_a_team_cannot_cover_others() -> None:
    (problem,) = budget_problems(make_budget("cap", "support").for_all_namespaces().parsed(), PLATFORM, {"UTC"})
    assert problem.reason == "NamespaceNotAllowed"
    assert budget_problems(make_budget("cap", "ai-platform").for_all_namespaces().parsed(), PLATFORM, {"UTC"}) == ()


def test_a_budget_needs_a_time_zone_that_exists() -> None:
    (problem,) = budget_problems(make_budget("cap").limit(timeZone="Mars/Olympus").parsed(), PLATFORM, {"UTC"})
    assert problem.reason == "UnknownTimeZone"
