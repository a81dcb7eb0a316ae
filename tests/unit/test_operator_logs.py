"""Every line of the log is one JSON object, whoever writes it."""

import json
import logging
import sys

import pytest

from fairlead_operator import logs


def line(record: logging.LogRecord) -> dict[str, object]:
    text = logs.JsonFormatter().format(record)
    assert "\n" not in text
    found: dict[str, object] = json.loads(text)
    return found


def record(message: str, *arguments: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("uvicorn.error", level, __file__, 1, message, arguments, None)


def test_a_line_has_time_level_and_event_first() -> None:
    made = record("listening on %s", "0.0.0.0:8080", level=logging.WARNING)
    made.created = 1_795_172_400.204
    assert list(line(made).items()) == [
        ("ts", "2026-11-20T11:00:00.204Z"),
        ("level", "warning"),
        ("event", "Log"),
        ("logger", "uvicorn.error"),
        ("message", "listening on 0.0.0.0:8080"),
    ]


def test_a_stack_is_one_field() -> None:
    made = record("broke off")
    try:
        int("two\nlines")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "Traceback" in str(line(made)["stack"])


def test_an_event_names_itself_and_its_fields() -> None:
    made = record("3 to 4 replicas")
    made.__dict__.update(logs.about("ScaledUp", pool="a/chat", bound_by=None))
    shown = line(made)
    assert (shown["event"], shown["pool"], shown["bound_by"]) == ("ScaledUp", "a/chat", None)
    assert "logger" not in shown


def test_all_loggers_write_to_the_one_handler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    logs.set_up("INFO")
    logging.captureWarnings(capture=False)
    logging.getLogger("uvicorn.error").warning("address in use")
    logging.getLogger("kopf.activities").error("login\nwas refused")
    shown = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert [one["logger"] for one in shown] == ["uvicorn.error", "kopf.activities"]


def test_a_level_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with pytest.raises(ValueError, match="LOUD"):
        logs.set_up("LOUD")
