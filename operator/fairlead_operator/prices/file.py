"""The price list of the chart's values: a file that is read again when it changes."""

import logging
from pathlib import Path

from fairlead_operator.decide.pricing import PriceList, parse_prices

log = logging.getLogger(__name__)

MAX_BYTES = 1024 * 1024


class PriceFile:
    """The newest price list. A file that is missing or unreadable leaves an empty list: prices are then unknown."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text: str | None = None
        self._prices = parse_prices("")

    def read(self) -> PriceList:
        """The list as the file has it now; parsed only when its text has changed."""
        text = self._content()
        if text != self._text:
            self._text = text
            self._prices = parse_prices(text)
            for problem in self._prices.problems:
                log.warning("price list %s: %s", self._path, problem.message)
        return self._prices

    def _content(self) -> str:
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_BYTES).decode(errors="replace")
        except OSError as error:
            if self._text != "":
                log.warning("price list %s cannot be read, prices are unknown: %s", self._path, error)
            return ""
