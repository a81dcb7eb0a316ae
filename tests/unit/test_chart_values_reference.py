"""docs/reference/values.md is what the comments of values.yaml say."""

from pathlib import Path

import pytest

from hack import values_reference
from hack.values_reference import MissingCommentError, Value, values_of

TEXT = """\
# About the file.

image:
  # Where images
  # come from.
  registry: ""
# Who | what.
names: [a, b]

resources:
  # Requests.
  requests: {cpu: 1}
"""


def test_the_page_in_the_repository_is_up_to_date() -> None:
    assert values_reference.main(["--check"]) == 0


def test_a_value_is_described_by_the_comment_above_it() -> None:
    assert values_of(TEXT) == [
        Value("image.registry", "", "Where images come from."),
        Value("names", ["a", "b"], "Who | what."),
        Value("resources.requests", {"cpu": 1}, "Requests."),
    ]
    assert '| `names` | `["a", "b"]` | Who \\| what. |' in values_reference.page(TEXT)


def test_a_value_without_a_comment_is_named() -> None:
    with pytest.raises(MissingCommentError, match=r"operator\.replicas has no comment"):
        values_of("operator:\n  # How much it says.\n  logLevel: info\n\n  replicas: 1\n")


def test_a_page_that_differs_is_told_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / values_reference.VALUES).parent.mkdir(parents=True)
    (tmp_path / values_reference.VALUES).write_text(TEXT, encoding="utf-8")
    root = ["--root", str(tmp_path)]
    assert values_reference.main(["--check", *root]) == 1
    assert "python -m hack.values_reference writes it" in capsys.readouterr().err
    assert values_reference.main(root) == 0
    assert values_reference.main(["--check", *root]) == 0
