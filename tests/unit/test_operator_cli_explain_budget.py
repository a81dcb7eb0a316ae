"""``fairlead explain budget``: what is left, who spent it, what the budget will do and when, and what would help."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_operator.api.v1alpha1 import CostBudget
from fairlead_operator.cli.explain_budget_facts import HOUR_MS, Known, Usage, troubles
from fairlead_operator.cli.explain_budget_json import explanation_json
from fairlead_operator.cli.explain_budget_text import explain_budget
from fairlead_operator.cli.main import main
from fairlead_operator.decide.outlook import Outlook
from fairlead_operator.status.costbudget import BudgetView, costbudget_status
from fairlead_operator.units import parse_usd
from fairlead_router.contract import KeySpend, SessionSpend, SpendAnswer, SpendList, UsageAnswer, UsageRow, Window
from tests.builders.decisions import NOW, USD
from tests.builders.resources import BudgetBuilder, make_budget
from tests.fakes.api_server import Fault
from tests.fakes.served_cluster import ServedCluster
from tests.golden_files import assert_golden

ROOT = Path(__file__).resolve().parents[2]
CENT = USD // 100
MONTH = Window(id=3, start=NOW - 468 * HOUR_MS, end=NOW + 252 * HOUR_MS)
"""November 2026 in Berlin."""
SUPPORT = make_budget("support", "support").limit(2300, timeZone="Europe/Berlin").alert(70).action("Pace", 85)
SESSIONS = tuple(SessionSpend(pod=f"chat-8b-h100-{number}", out=4 * CENT, state="Open") for number in range(8))
LOST = SessionSpend(pod="chat-8b-h100-x2k9p", out=18 * CENT, state="Lost")
WEEK = (("ticket-summary", 70_503 * CENT), ("reply-draft", 16_474 * CENT), ("agent", 5_287 * CENT))
STEADY = Usage({NOW - hour * HOUR_MS: 549 * CENT for hour in range(1, 169)}, "feature", WEEK, 7)


def account(charged: int, namespace: str = "support", key: str = "", **fields: int) -> KeySpend:
    usual = {"leased": 32 * CENT, "reserved": 20 * CENT, "unreconciled": 18 * CENT, "unbacked": 0}
    return KeySpend(namespace=namespace, key=key, charged=charged, counted_from=MONTH.start, **{**usual, **fields})


def spend(*keys: KeySpend, **fields: Any) -> SpendAnswer:
    """What the ledger says of support/support: 1942.20 of 2300 USD, 65 % of the month is gone."""
    keys = keys or (account(194_202 * CENT),)
    amounts = {name: getattr(keys[0], name) for name in ("charged", "leased", "reserved", "unreconciled", "unbacked")}
    usual: dict[str, Any] = {
        "namespace": "support", "name": "support", "unit": "USD", "per": "Namespace", "limit": 2300 * USD, "extra": 0,
        "remaining": 0, "window": MONTH, "window_label": "2026-11", "counted_from": MONTH.start, "action": "Alert",
        "active": ("Alert",), "keys": keys, "keys_total": len(keys), "sessions": (*SESSIONS, LOST),
    }  # fmt: skip
    return SpendAnswer(**(amounts | usual | fields))


def ahead(at_end: int = 332_616 * CENT, burn: int = 961 * CENT, window: Window = MONTH) -> Outlook:
    return Outlook(burn, at_end, at_end * 29 // 30, at_end * 31 // 30, window.end, NOW)


def known(
    built: BudgetBuilder,
    told: SpendAnswer | None,
    outlook: Outlook | None = None,
    usage: Usage | None = None,
    routers: tuple[int, int] = (8, 8),
) -> Known:
    """A budget with the status that the operator writes of the ledger's answer."""
    view = BudgetView(built.parsed(), told, 1, *routers, outlook=outlook)
    body = built.status(**costbudget_status(view, {}, NOW)).obj()
    return Known(CostBudget.parse(body), NOW, told, usage)


def text(found: Known, silence: str = "") -> str:
    return "\n".join(explain_budget(found, silence)) + "\n"


def unheard(found: Known) -> Known:
    """The same when the ledger cannot be asked."""
    return Known(found.budget, found.now)


CALLER = make_budget("loop", "support").limit(1_000_000, unit="Tokens", per="Caller", period="Day")
KEYS = tuple(
    account(amount, key=f"key:{name}", leased=4_000, unreconciled=0)
    for amount, name in ((990_000, "agent"), (1_200, "web"))
)
FLOW = make_budget("agent-loop", "support").limit(200, unit="Requests", per="Workflow", period="Day")
MINUTE = make_budget("demo", "support").limit("0.05", period="Minute").action("Pace", 50).action("Deprioritize", 80)
NOW_ON = Window(id=9, start=NOW - 40_000, end=NOW + 20_000)
SMALL = account(31_000_000, leased=1_000_000, unreconciled=0)
FULL = account(2_299_80 * CENT, leased=2 * CENT)
NOTHING = account(0, leased=0, unreconciled=0)
CASES = {
    "month": known(SUPPORT, spend(), ahead(), STEADY),
    "month-without-the-ledger": unheard(known(SUPPORT, spend(), ahead())),
    "audit": known(SUPPORT.audit(), spend(account(2_400 * USD), active=("Alert", "Pace"), action="Reject"), ahead()),
    "used-up": known(SUPPORT, spend(FULL, active=("Alert", "Pace"), action="Reject", keys_limited=1), ahead(), STEADY),
    "paced": known(
        SUPPORT, spend(account(1_960 * USD), active=("Alert", "Pace"), action="Pace", pace_per_hour=135 * CENT), ahead()
    ),
    "increase": known(
        SUPPORT.increase(500), spend(extra=500 * USD, active=(), action="None"), ahead(2_100 * USD), STEADY
    ),
    "idle": known(SUPPORT.with_idle(), spend(idle=120 * USD, active=("Alert", "Pace"), pace_per_hour=USD), ahead()),
    "callers-in-tokens": known(
        CALLER,
        spend(*KEYS, unit="Tokens", per="Caller", limit=1_000_000, active=(), action="None", keys_total=37),
        ahead(1_400_000, 20_000),
        Usage({}, "feature", (("", 1_000_000), ("chat", 500_000)), 7),
    ),
    "workflows": known(
        FLOW,
        spend(account(200, key="wf-7f3a", unreconciled=0, leased=0), unit="Requests", per="Workflow", limit=200,
              active=(), action="Reject", keys_total=37, keys_limited=1),
    ),
    "a-minute": known(
        MINUTE,
        spend(SMALL, limit=50_000_000, window=NOW_ON, window_label="2026-11-20T11:00", counted_from=NOW_ON.start,
              active=("Pace",), action="Pace", pace_per_hour=3_600_000_000),
        ahead(64_000_000, 2_000_000, NOW_ON),
    ),
    "no-routers": known(SUPPORT, spend(), ahead(), STEADY, routers=(0, 0)),
    "closed": known(SUPPORT.limit(0), spend(NOTHING, limit=0, action="Reject", sessions=())),
    "not-counted": Known(SUPPORT.parsed(), NOW),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_printed_is_as_recorded(name: str) -> None:
    silence = "no answer from http://127.0.0.1:8080." if name.endswith("without-the-ledger") else ""
    assert_golden(f"explain/budget-{name}.txt", text(CASES[name], silence))


@pytest.mark.parametrize("name", CASES)
def test_the_document_is_as_recorded(name: str) -> None:
    silence = "no answer from http://127.0.0.1:8080." if name.endswith("without-the-ledger") else ""
    document = json.loads(explanation_json(CASES[name], silence))
    assert_golden(f"explain/budget-{name}.json", json.dumps(document, indent=1) + "\n")


def test_a_document_of_a_window_that_is_over_foretells_nothing() -> None:
    document = json.loads(explanation_json(Known(CASES["month"].budget, MONTH.end + 1)))
    assert document["look"][0] == "These are the last figures of 2026-11, which is over. Is the operator up?"
    assert document["parts"]["spent"] == 194_220 * CENT
    assert [name for name, value in document.items() if value is None] == [
        "silence", "burn_per_hour", "forecast", "steps", "accounts", "shares", "helps",
    ]  # fmt: skip


def test_the_guide_shows_what_is_printed() -> None:
    lines = [line for line in explain_budget(CASES["month"]) if "LOOK" not in line]
    assert "\n".join(lines) in (ROOT / "docs/how-to/set-a-budget.md").read_text(encoding="utf-8")


def test_figures_of_a_window_that_is_over_are_called_old_and_nothing_is_foretold_from_them() -> None:
    later = Known(CASES["month"].budget, MONTH.end + 1)
    lines = explain_budget(later)
    assert "in 2026-11. Action: Alert." in lines[0]
    assert "These are the last figures of 2026-11, which is over. Is the operator up?" in lines[2]
    assert [line.split()[0] for line in lines[1:]] == ["sum", "LOOK", "LOOK"]


def test_a_budget_of_which_the_operator_said_nothing_yet_is_told_as_written() -> None:
    lines = explain_budget(Known(SUPPORT.parsed(), NOW))
    assert lines == [
        (
            "support/support: 2300 USD per Namespace and Month (Europe/Berlin). Nothing is counted yet. "
            "Enforced by: the operator has not said yet."
        )
    ]


def test_audit_and_conditions_that_are_fine_need_no_look() -> None:
    fine = known(SUPPORT.audit(), spend(), ahead(2_000 * USD)).budget
    assert troubles(fine) == []
    assert [one.split(":")[0] for one in troubles(CASES["used-up"].budget)] == [
        "WithinBudget=False/LimitReached",
        "ForecastWithinBudget=False/ForecastAboveLimit",
    ]


def test_an_action_whose_beginning_is_not_kept_is_done_without_a_time() -> None:
    short = Usage({NOW - HOUR_MS: 549 * CENT}, "feature", WEEK, 7)
    assert re.search(r"actions +70% +1610\.00  Alert +done", text(known(SUPPORT, spend(), ahead(), short)))


def test_a_name_that_a_client_chose_does_not_move_the_cursor() -> None:
    usage = Usage({}, "feature", (("\x1b[2J\n", USD),), 7)
    printed = text(known(SUPPORT, spend(), ahead(), usage))
    assert "\x1b" not in printed
    assert "\ufffd[2J\ufffd 1.00 (100.0%)" in printed


amounts = st.integers(0, 10**15)


@settings(deadline=None)
@given(amounts, st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**6), st.booleans())
def test_the_parts_of_the_limit_add_up_in_print(
    charged: int, unreconciled: int, leased: int, limit: int, heard: bool
) -> None:
    told = spend(
        account(charged, unreconciled=unreconciled, leased=leased), limit=limit * 10**6, sessions=(), active=()
    )
    found = known(SUPPORT.limit(str(Decimal(limit) / 1000)), told)
    line = explain_budget(found if heard else unheard(found))[1]
    settled, unknown, spent, held, free, whole = map(Decimal, re.findall(r"(-?\d+\.\d+)", line))
    assert settled + unknown == spent
    assert spent + held + free == whole
    document = json.loads(explanation_json(found if heard else unheard(found)))
    parts = document["parts"]
    assert parts["settled"] + parts["unreconciled"] == parts["spent"] == spent * USD
    assert parts["spent"] + parts["leased" if heard else "reserved"] + parts["free"] == document["limit"]


@settings(deadline=None)
@given(st.integers(1, 10**13), st.integers(1, 99), st.sampled_from(["Pace", "RejectBatch", "Alert"]))
def test_the_limit_that_helps_is_enough_and_one_less_is_not(at_end: int, percent: int, action: str) -> None:
    built = make_budget("support", "support").limit(20).action(action, percent)
    found = known(built, spend(account(0), limit=20 * USD, active=(), action="None"), ahead(at_end))
    at_end = parse_usd(found.budget.status.forecast.at_window_end) if found.budget.status.forecast else 0
    share = 100 if action == "Alert" else percent
    helps = re.search(r"a limit of (\d+) keeps the forecast below", text(found))
    if helps is None:
        assert at_end * 100 < share * 20 * USD
        return
    limit = int(helps[1])
    assert at_end * 100 < share * limit * USD
    assert at_end * 100 >= share * (limit - 1) * USD
    patch = re.search("-p '(.*)'", text(found))
    assert patch is not None
    raised = CostBudget.parse(built.spec(**json.loads(patch[1])["spec"]).obj()).spec.temporary_increase
    assert raised is not None
    assert (raised.amount.nano, raised.until_ms) == ((limit - 20) * USD, MONTH.end)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**12), max_size=200), st.integers(1, 99), st.integers(0, 10**12))
def test_times_lie_within_the_window_those_that_were_before_now_and_those_to_come_after(
    hours: list[int], percent: int, burn: int
) -> None:
    points = {NOW - place * HOUR_MS: amount for place, amount in enumerate(hours)}
    charged = min(sum(hours), 2_300 * USD)
    active = ("Alert",) if charged * 100 >= percent * 2_300 * USD else ()
    told = spend(account(charged, unreconciled=0), active=active, action="None")
    found = known(make_budget("support", "support").limit(2300).alert(percent), told, ahead(charged * 2, burn),
                  Usage(points, "feature", (), 7))  # fmt: skip
    for line in text(found).splitlines():
        at = re.search(r"about (\S+)Z", line)
        if at:
            assert ("done" in line or "refused" in line) == (at[1] < "2026-11-20T11:00") or at[1] == "2026-11-20T11:00"
            assert "2026-10-31T23:00" <= at[1] < "2026-11-30T23:00"


# --- on the command line


class Ledger(BaseHTTPRequestHandler):
    """Answers with the spend that it was given, and 1 USD for every question for usage."""

    told: SpendList
    asked: list[dict[str, str]]
    status: Mapping[str, int]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.asked.append(query)
        body = msgspec.json.encode(self.told if url.path == "/v1/spend" else usage(query))
        self.send_response(self.status.get(url.path, 200))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


def usage(query: Mapping[str, str]) -> UsageAnswer:
    """Three rows: of support and search, which a budget may cover, and of another namespace."""
    since, by = int(query["since"]), tuple(query["by"].split(","))
    names = {"time": str(since), "feature": "chat", "caller": "key:web", "model": "chat-8b"}
    sums = dict.fromkeys(("prompt", "cached", "output", "saved", "cost_p50_nano", "cost_p95_nano", "cost_p99_nano"), 0)
    places = ("support", "search", "other") if "namespace" in by else ("",)
    rows = [tuple(place if name == "namespace" else names[name] for name in by) for place in places]
    found = tuple(UsageRow(group=row, requests=1, nano_usd=USD, **sums) for row in rows)
    return UsageAnswer(since=since, until=int(query["until"]), by=by, rows=found)


@pytest.fixture(name="served")
def _served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedCluster]:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    made = ServedCluster(tmp_path)
    yield made
    made.stop()


@pytest.fixture(name="options")
def _options(tmp_path: Path) -> Iterator[list[str]]:
    Ledger.told, Ledger.asked, Ledger.status = SpendList(), [], {}
    server = HTTPServer(("127.0.0.1", 0), Ledger)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    token = tmp_path / "token"
    token.write_text("t", encoding="utf-8")
    yield ["--ledger", f"http://127.0.0.1:{server.server_port}", "--token-file", str(token)]
    server.shutdown()
    server.server_close()
    thread.join()


def present() -> Window:
    """A window of ten days that half is gone of, by the clock of the command."""
    now = time.time_ns() // 1_000_000
    return Window(id=3, start=now - 120 * HOUR_MS, end=now + 120 * HOUR_MS)


def put(served: ServedCluster, built: BudgetBuilder, told: SpendAnswer, at_end: int = 2_000 * USD) -> None:
    """The budget as the operator left it."""
    view = BudgetView(built.parsed(), told, 1, 8, 8, outlook=ahead(at_end, window=told.window))
    served.put("costbudgets", built.status(**costbudget_status(view, {}, NOW)).obj())


def ask(served: ServedCluster, *arguments: str) -> int:
    place = "ai-platform" if "fleet" in arguments else "support"
    return main(["explain", "budget", "--kubeconfig", str(served.kubeconfig), "-n", place, *arguments])


def test_a_budget_is_told_as_the_ledger_has_it_now(
    served: ServedCluster, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    window = present()
    put(served, SUPPORT, spend(account(100 * USD), window=window, active=(), action="None"))
    Ledger.told = SpendList(budgets=(spend(name="other"), spend(window=window)))
    assert ask(served, "support", *options) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("support/support: 1942.20 of 2300 USD (84.4%), 50.0% of 2026-11 gone")
    assert "Enforced by 8 of 8 routers." in printed
    assert "leased 0.32 (8 routers)" in printed
    assert "forecast 2000.00" in printed
    assert "  7 days   chat 1.00 (100.0%) = 1.00" in printed
    hours, shares = Ledger.asked[1:]
    assert (hours["by"], hours["step"], hours["namespace"]) == ("time", str(HOUR_MS), "support")
    assert (shares["by"], shares["namespace"]) == ("feature", "support")
    assert int(shares["until"]) - int(shares["since"]) == 168 * HOUR_MS


def test_a_budget_that_holds_requests_back_is_status_1(
    served: ServedCluster, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = spend(account(1_960 * USD), window=present(), active=("Alert", "Pace"), action="Pace", pace_per_hour=USD)
    put(served, SUPPORT, told)
    Ledger.told = SpendList(budgets=(told,))
    assert ask(served, "support", *options) == 1
    assert "Pace          in force: admits 1.00 USD/h" in capsys.readouterr().out
    assert ask(served, "support", "-o", "json", *options) == 1
    document = json.loads(capsys.readouterr().out)
    assert [(step["action"], step["state"], step["per_hour"]) for step in document["steps"]] == [
        ("Alert", "Done", None), ("Pace", "InForce", USD), ("Reject", "HeldByPace", None),
    ]  # fmt: skip
    assert document["shares"]["rows"] == [{"name": "chat", "amount": USD}]


def test_without_the_ledger_the_status_is_told_and_that_is_not_shown_as_fine(
    served: ServedCluster, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    put(served, SUPPORT, spend(window=present()))
    assert ask(served, "support", "--ledger", "http://127.0.0.1:1", *options[2:]) == 3
    printed = capsys.readouterr().out
    assert "reserved 0.20 + free" in printed
    assert re.search("ledger +GET /v1/spend: no answer from http://127.0.0.1:1 .*Is --ledger right", printed)
    Ledger.status = {"/v1/spend": 401}
    assert ask(served, "support", *options) == 1
    assert "answered 401" in capsys.readouterr().out


def test_usage_that_is_refused_leaves_the_rest(
    served: ServedCluster, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = spend(window=present())
    put(served, SUPPORT, told)
    Ledger.told, Ledger.status = SpendList(budgets=(told,)), {"/v1/usage": 403}
    assert ask(served, "support", *options) == 1
    printed = capsys.readouterr().out
    assert "leased 0.32 (8 routers)" in printed
    assert "answered 403" in printed


def test_the_time_is_the_ledgers(served: ServedCluster, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    put(served, SUPPORT, spend(active=(), action="None"))
    Ledger.told = SpendList(budgets=(spend(),), now=NOW)
    assert ask(served, "support", *options) == 0
    assert "65.0% of 2026-11 gone (Europe/Berlin, 252h left)" in capsys.readouterr().out
    assert Ledger.asked[-1]["until"] == str(NOW)


def test_a_budget_that_the_ledger_does_not_show_is_said(
    served: ServedCluster, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    put(served, SUPPORT, spend(window=present()))
    assert ask(served, "support", *options) == 1
    assert "it has no such budget, or does not show it to this token" in capsys.readouterr().out


FLEET = make_budget("fleet", "ai-platform").limit(5000, per="Total").for_labels(tenant="yes").for_models("chat-8b")


def fleet() -> SpendAnswer:
    everybody = account(194_202 * CENT, namespace="")
    return spend(everybody, namespace="ai-platform", name="fleet", per="Total", window=present(), active=())


def test_only_namespaces_that_a_platform_budget_selects_are_told(
    served: ServedCluster, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, labels in (("support", {"tenant": "yes"}), ("search", {"tenant": "yes"}), ("other", {})):
        served.put("namespaces", {"metadata": {"name": name, "labels": labels}})
    put(served, FLEET, fleet())
    Ledger.told = SpendList(budgets=(fleet(),))
    assert ask(served, "fleet", *options) == 0
    assert "  7 days   chat 2.00 (100.0%) = 2.00" in capsys.readouterr().out
    assert [query.get("by") for query in Ledger.asked] == [None, "time,namespace", "feature,namespace"]
    assert {query["model"] for query in Ledger.asked[1:]} == {"chat-8b"}


def test_without_the_right_to_list_namespaces_nobody_is_named(
    served: ServedCluster, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    put(served, FLEET, fleet())
    Ledger.told = SpendList(budgets=(fleet(),))
    served.server.faults.append(Fault("GET", "/namespaces?", 403))
    assert ask(served, "fleet", *options) == 0
    printed = capsys.readouterr().out
    assert "you may not list the namespaces that it selects from" in printed
    assert "7 days" not in printed


def test_who_called_is_told_of_a_budget_per_feature(
    served: ServedCluster, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = spend(account(USD, key="chat"), per="Feature", window=present(), active=(), action="None")
    put(served, SUPPORT.limit(per="Feature"), told)
    Ledger.told = SpendList(budgets=(told,))
    assert ask(served, "support", *options) == 0
    assert "  7 days   key:web 1.00 (100.0%) = 1.00" in capsys.readouterr().out
    assert {(query["feature"], query["namespace"]) for query in Ledger.asked[1:]} == {("chat", "support")}


def test_a_budget_that_is_not_there_is_named(
    served: ServedCluster, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(served, "nobody", *options) == 1
    assert "there is no costbudgets.fairlead.dev support/nobody" in capsys.readouterr().err


def test_a_budget_that_cannot_be_read_is_status_2(
    served: ServedCluster, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    served.put("costbudgets", SUPPORT.limit(per="Team").obj())
    assert ask(served, "support", *options) == 2
    assert "CostBudget support/support cannot be read" in capsys.readouterr().err
