"""docs/reference/engine.md is what the engine table says."""

from pathlib import Path

from hack import engine_reference


def test_the_page_in_the_repository_is_up_to_date() -> None:
    assert engine_reference.main(["--check"]) == 0


def test_a_page_that_differs_is_told_and_written(tmp_path: Path) -> None:
    root = ["--root", str(tmp_path)]
    assert engine_reference.main(["--check", *root]) == 1
    assert engine_reference.main(root) == 0
    assert engine_reference.main(["--check", *root]) == 0


def test_what_changed_between_the_versions_is_said() -> None:
    changes = engine_reference.page().partition("## From vLLM")[2]
    for words in (
        "`--watchdog-config`",
        "`--kv-cache-dtype` takes any value",
        "`--spec-method` takes `step5_mtp` and no longer takes `medusa`",
    ):
        assert words in changes
