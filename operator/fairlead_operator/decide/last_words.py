"""Which line of an engine's log says best why it ended."""

import re
from collections.abc import Sequence

_PREFIX = re.compile(r"^(?:\([^()\s]+ pid=\d+\) ?)?(?:(?:ERROR|CRITICAL|WARNING|INFO|DEBUG)\s+\S+ \S+ \[[^\]]*\]\s?)?")
"""What vLLM writes before each line: the process, then level, time and place in the source."""
_ERROR = re.compile(r"^(?:[A-Za-z_]\w*\.)*(?:[A-Z]\w*)?(?:Error|Exception|Exit|Interrupt)\b: |^[\w ./:-]*\berror: ")
_POINTER = re.compile(
    r"root cause above|for root cause|Engine core initialization failed|Failed core proc|during handling of"
)
_INVALID = re.compile(r"ValidationError: \d+ validation errors? for (\w+)$")
_QUOTED_INPUT = " [type="
"""From here on pydantic quotes the value that it refuses."""


def names_cause(line: str) -> bool:
    """Whether a line of a log is an error that does not only point to another one."""
    return bool(_ERROR.match(line)) and not _POINTER.search(line)


def telling_line(log: str) -> str:
    """The line of a log's end that says best why a program ended: the last that looks like an error, else the last.

    vLLM ends with the traceback of its parent, which only says that the engine core did not start, and with warnings
    of torch about process groups; the cause is the last error above them that does not point elsewhere. Of an error of
    pydantic it is the first of the lines below it that say what is refused.
    """
    lines = [bare for line in log.splitlines() if (bare := _PREFIX.sub("", line).rstrip())]
    errors = [place for place, line in enumerate(lines) if _ERROR.match(line.strip())]
    causes = [place for place in errors if not _POINTER.search(lines[place])]
    found = next((places[-1] for places in (causes, errors, range(len(lines))) if places), None)
    return "" if found is None else _with_detail(lines, found).strip()


def _with_detail(lines: Sequence[str], place: int) -> str:
    """A line, or of pydantic's the refusal below it, which is indented and may have the field's name above it."""
    invalid = _INVALID.search(lines[place])
    said = next((line for line in lines[place + 1 : place + 3] if line.startswith("  ")), None)
    if invalid is None or said is None:
        return lines[place]
    field = lines[place + 1].strip() if not lines[place + 1].startswith("  ") else ""
    what = ".".join(part for part in (invalid[1], field) if part)
    return f"ValidationError: {what}: {said.strip().removeprefix('Value error, ').partition(_QUOTED_INPUT)[0]}"
