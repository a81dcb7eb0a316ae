"""Log lines: one JSON object a line, whoever writes it; a stack is one field of it."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

PLAIN = "Log"
"""The ``event`` of a line that tells of nothing that has a name."""


class JsonFormatter(logging.Formatter):
    """``ts``, ``level``, ``event``, then what the line is about. ``extra=about(…)`` names the event and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "ts": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", PLAIN),
            **getattr(record, "fields", {"logger": record.name}),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def about(event: str, /, **fields: object) -> dict[str, object]:
    """``extra`` of a log call: the event's name and its fields."""
    return {"event": event, "fields": fields}


def set_up(level: str | int = logging.INFO) -> None:
    """Send every logger of the process, those of libraries too, to stderr as JSON lines.

    Raises:
        ValueError: there is no such level.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
