"""docs/reference/metrics.md is what the router's metrics say."""

import re
from pathlib import Path

import pytest

from fairlead_router.exposition import Buckets, Metric
from fairlead_router.telemetry import METRICS
from hack import metrics_reference
from hack.reference_page import ROOT


def test_the_page_in_the_repository_is_up_to_date() -> None:
    assert metrics_reference.main(["--check"]) == 0


def test_the_guide_names_only_metrics_that_exist() -> None:
    text = (ROOT / "docs/how-to/see-what-happens.md").read_text(encoding="utf-8")
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bfairlead_[a-z_]+", text)}
    assert named
    assert named <= {metric.name for metric in METRICS}


def test_a_metric_is_a_row_with_its_type_labels_meaning_and_buckets() -> None:
    counter = Metric("a_total", "counter", "How many.", ("pool", "kind"))
    histogram = Metric("b_seconds", "histogram", "How long.", (), Buckets(1e-6, 4, 10))
    rows = metrics_reference.page([counter, histogram]).splitlines()[-2:]
    assert rows == [
        "| `a_total` | counter | `pool`, `kind` | How many. |",
        "| `b_seconds` | histogram |  | How long. 7 buckets, 0.000016 to 0.001024 s. |",
    ]


def test_a_page_that_differs_is_told_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path)]
    assert metrics_reference.main(["--check", *root]) == 1
    assert "python -m hack.metrics_reference writes it" in capsys.readouterr().err
    assert metrics_reference.main(root) == 0
    assert metrics_reference.main(["--check", *root]) == 0
