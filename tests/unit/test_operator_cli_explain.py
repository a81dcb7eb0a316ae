"""``fairlead explain pool``: what runs, why, and what would change it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from fairlead_operator.api.v1alpha1 import ModelPool
from fairlead_operator.cli.explain import Figures, explain_pool, parse_metrics, sets_of, troubles
from fairlead_operator.cli.main import main
from fairlead_operator.kube.cluster import Snapshot
from fairlead_operator.telemetry import ScalingFigures, Telemetry
from tests.builders.resources import PoolBuilder, make_pool
from tests.fakes.served_cluster import ServedCluster

KEY = "ai-platform/chat-8b"
FIGURES = Figures(
    {
        "rate": 29.5,
        "forecast": 30.2,
        "need": 32.4,
        "have": 33.3,
        "horizon_seconds": 94,
        "backlog": 0,
        "misses_left": 812,
    },
    {"h100": 10.25, "l40s": 2.55},
)


def variant(name: str, replicas: int, price: str | None) -> dict[str, Any]:
    counts = {"replicas": replicas, "readyReplicas": replicas, "desiredReplicas": replicas}
    priced = {} if price is None else {"pricePerAcceleratorHour": price}
    return {"name": name, **counts, "acceleratorsPerReplica": 1, **priced}


def chat(**changes: Any) -> PoolBuilder:
    objectives = {"timeToFirstToken": "2s", "timePerOutputToken": "50ms"}
    status: dict[str, Any] = {
        "readyReplicas": 4,
        "desiredReplicas": 4,
        "costPerHour": "10.40",
        "service": {
            "window": "5m", "queueDepth": 0, "timeToFirstToken": "1310ms", "timePerOutputToken": "38ms",
            "attainmentPercent": 99,
        },
        "scaling": [
            {
                "time": "2026-11-20T08:41:10Z", "fromReplicas": 3, "toReplicas": 4, "reason": "Forecast",
                "message": "Forecast 30.20 is above 30.75. No limit bound.",
            }
        ],
        "variants": [variant("h100", 3, "2.95"), variant("l40s", 1, "1.55")],
        "conditions": [condition("Ready", "True", "Ready"), condition("ScalingLimited", "False", "NotLimited")],
    }  # fmt: skip
    built = make_pool("chat-8b").variant("h100").variant("l40s").autoscaling(8, objectives=objectives)
    return built.status(**(status | changes))


def condition(kind: str, status: str, reason: str, message: str = "So it is.") -> dict[str, Any]:
    return {
        "type": kind, "status": status, "reason": reason, "message": message, "observedGeneration": 1,
        "lastTransitionTime": "2026-11-20T08:00:00Z",
    }  # fmt: skip


def lines(pool: ModelPool, figures: Figures | None = None) -> list[str]:
    return explain_pool(pool, [], figures)


def test_the_status_alone_says_what_runs_how_it_serves_and_why() -> None:
    assert lines(chat().parsed()) == [
        (
            "chat-8b runs 4 replicas (3 h100 + 1 l40s) for 10.40 USD/h. It wants 4; nothing limits it. "
            "Unchanged since 2026-11-20T08:41:10Z."
        ),
        "  served   last 5m, p99: first token 1310ms, 38ms a token, 99% met, 0 waiting",
        "  wanted   first token 2s, 50ms a token, 99% met, 5 waiting at each replica",
        "  bounds   from 1 to 8 replicas",
        "  last     2026-11-20T08:41:10Z 3 to 4 Forecast: Forecast 30.20 is above 30.75. No limit bound.",
    ]


def test_the_figures_say_what_is_needed_what_is_there_and_what_other_sets_would_do() -> None:
    text = lines(chat().parsed(), FIGURES)
    assert text[3:12] == [
        "  need     29.50 requests/s now; 0 waiting, 812 may still miss today",
        "  forecast 30.20 in 94s; 32.40 is exceeded one time in ten",
        "  have     3 x 10.25 + 1 x 2.55 = 33.30, 89% used",
        "  SET              REQ/S  $/HOUR   $/1K  VERDICT",
        "  3 h100 + 1 l40s  33.30   10.40  0.098  runs",
        "  4 h100 + 1 l40s  43.55   13.35  0.126  2.95 USD/h more",
        "  3 h100 + 2 l40s  35.85   11.95  0.113  1.55 USD/h more",
        "  2 h100 + 1 l40s  23.05    7.45  0.070  9.35 short",
        "  3 h100           30.75    8.85  0.083  1.65 short",
    ]
    assert "  change   up above 33.30 requests/s, down when 30.75 covers it for longer than a start costs" in text


def test_a_variant_without_a_price_leaves_the_cost_of_its_sets_unknown() -> None:
    pool = chat(variants=[variant("h100", 3, "2.95"), variant("l40s", 0, None)]).parsed()
    found = {tuple(row.counts.items()): (row.cost, row.verdict) for row in sets_of(pool, FIGURES)}
    assert found[("h100", 3), ("l40s", 0)][0] == pytest.approx(8.85)
    assert found[("h100", 3), ("l40s", 1)] == (None, "covers it, cost unknown")


def test_what_needs_a_look_is_said_with_its_reason() -> None:
    limited = condition("ScalingLimited", "True", "MaxReplicas", "Wants 9 replicas, autoscaling.maxReplicas allows 8.")
    missing = condition("ScalingActive", "False", "SignalsMissing", "No router is ready.")
    pool = chat(conditions=[limited, missing, condition("Progressing", "True", "RollingOut")]).parsed()
    assert troubles(pool) == [
        "ScalingLimited=True/MaxReplicas: Wants 9 replicas, autoscaling.maxReplicas allows 8.",
        "ScalingActive=False/SignalsMissing: No router is ready.",
    ]
    assert "MaxReplicas limits it" in lines(pool)[0]


@pytest.mark.parametrize(
    ("status", "reason", "shown"),
    [
        ("True", "RollingOut", False),
        ("False", "Complete", False),
        ("False", "Undone", False),
        ("False", "NoCapacityForSurge", True),
        ("False", "StartupTimedOut", True),
        ("False", "RolledBack", True),
    ],
)
def test_a_rollout_that_is_stuck_or_was_taken_back_needs_a_look(status: str, reason: str, shown: bool) -> None:
    pool = chat(conditions=[condition("Progressing", status, reason, "Words.")]).parsed()
    assert troubles(pool) == ([f"Progressing={status}/{reason}: Words."] if shown else [])


def test_a_pool_whose_number_others_write_says_so_and_one_without_a_status_says_what_is_known() -> None:
    text = lines(make_pool("new").replicas(3).parsed())
    assert text == [
        "new runs 0 replicas (none), cost unknown. It wants 0; nothing limits it.",
        "  change   spec.replicas is 3; whoever writes it decides",
        "  last     no change is remembered",
    ]


def test_bounds_name_money_and_idle_time() -> None:
    built = make_pool("c").autoscaling(4, 0, scaleToZeroAfter="1h", maxCostPerThousandRequests="0.40")
    assert (
        "  bounds   from 0 to 4 replicas, 0.40 USD a thousand requests at most, to zero after 1h without a request"
        in lines(built.parsed())
    )


def test_the_operators_metrics_are_read_and_those_of_other_pools_are_not() -> None:
    telemetry = Telemetry(Snapshot, dict, lambda: True, lambda: 0)
    telemetry.scaling[KEY] = ScalingFigures(29.5, 30.2, 32.4, 33.3, 94.0, 0, 812, {"h100": 10.25, "l40s": 2.55})
    telemetry.scaling["ai-platform/other"] = ScalingFigures(1, 1, 1, 1, 1, 1, 1, {"h100": 1})
    text = generate_latest(telemetry.registry).decode()
    assert parse_metrics(text, KEY) == FIGURES
    telemetry.forget_pool(KEY)
    assert parse_metrics(generate_latest(telemetry.registry).decode(), KEY) is None


@given(st.text(max_size=300))
def test_any_text_may_come_from_the_metrics_port(text: str) -> None:
    assert parse_metrics(text, KEY) is None
    assert parse_metrics(f'fairlead_pool_rate{{pool="{KEY}"}} {text}\n', KEY) is None


# --- on the command line ---


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedCluster]:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    made = ServedCluster(tmp_path)
    yield made
    made.stop()


def ask(served: ServedCluster, *arguments: str) -> int:
    return main(["explain", "pool", "--kubeconfig", str(served.kubeconfig), "-n", "ai-platform", *arguments])


def test_a_pool_is_asked_for_with_its_events(served: ServedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    raw = chat().obj()
    served.put("modelpools", raw)
    for name, uid in (("one", raw["metadata"]["uid"]), ("two", "another")):
        meta = {"name": name, "namespace": "ai-platform"}
        about = {"regarding": {"uid": uid}, "eventTime": "2026-11-20T08:41:10.000000Z", "type": "Normal"}
        served.put("events", {"metadata": meta, "reason": "ScaledUp", "note": f"of {name}", **about})
    assert ask(served, "chat-8b") == 0
    printed = capsys.readouterr().out
    assert "chat-8b runs 4 replicas" in printed
    assert "event    2026-11-20T08:41:10Z Normal ScaledUp: of one" in printed
    assert "of two" not in printed


def test_what_needs_a_look_is_status_1(served: ServedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    served.put("modelpools", chat(conditions=[condition("Available", "False", "Starting")]).obj())
    assert ask(served, "chat-8b") == 1
    assert "LOOK     Available=False/Starting" in capsys.readouterr().out


def test_a_pool_that_is_not_there_is_named(served: ServedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(served, "nobody") == 1
    assert "there is no modelpools.fairlead.dev ai-platform/nobody" in capsys.readouterr().err


def test_metrics_that_cannot_be_read_are_said(served: ServedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    served.put("modelpools", chat().obj())
    assert ask(served, "chat-8b", "--metrics", "http://127.0.0.1:1/metrics") == 2
    assert "Forward the port of the operator that leads" in capsys.readouterr().err
