"""Gauges that are read now and then, and must not miss what was between two readings."""

from dataclasses import dataclass, field
from typing import Final

_MAX_READERS: Final = 8


@dataclass(slots=True, eq=False)
class Peaks:
    """A gauge with the highest value since each reader's previous reading; it knows the latest eight readers."""

    value: int = 0
    _peak: int = 0
    _readers: dict[str, int] = field(default_factory=dict)

    def set(self, value: int) -> None:
        """The gauge is now at ``value``."""
        self.value = value
        if value > self._peak:  # noqa: PLR1730 - on every request's way, where `max` takes three times as long
            self._peak = value

    def read(self, reader: str) -> int:
        """The peak since this reader's last reading, and begin a new one for it."""
        for name in self._readers:
            self._readers[name] = max(self._readers[name], self._peak)
        peak = max(self._readers.pop(reader, self._peak), self.value)
        self._peak = self.value
        if len(self._readers) >= _MAX_READERS:
            del self._readers[next(iter(self._readers))]
        self._readers[reader] = self.value
        return peak
