"""What sessions hold, in memory between transactions although other ledgers write to the same database.

The holdings of a session change only in transactions that lock its row and store it anew, with another sequence number
or time. So what a transaction has left in memory is what the database holds for as long as the row, once it is locked,
is the one that this transaction stored; any other row, and the holdings are read again. There is one exception, the
upkeep that drops holdings of windows that ended a week ago: whoever stores a holding that is gone finds no row, and
does all again without memory. Who needs all that a session holds reads it. A transaction that is undone leaves nothing.
"""

from typing import Final

from sqlalchemy import Connection

from fairlead_operator.ledger.escrow import NOTHING, Place, Row, Session
from fairlead_operator.ledger.structs import same

MOST: Final = 200_000
"""Holdings in memory; with more of them, it begins anew."""
_KEY: Final = "held"


class Held:
    """What is known of a session's holdings: those of ``accounts``, or all. A row of nothing stands for no row."""

    def __init__(self) -> None:
        self.rows: dict[Place, Row] = {}
        self.stored: set[Place] = set()
        """Those that the database has."""
        self.accounts: set[int] = set()
        self.all: bool = False
        self.changed: set[Place] = set()

    def add(self, rows: dict[Place, Row]) -> None:
        """Rows as they are stored, unless they are known."""
        self.stored |= rows.keys()
        for place, row in rows.items():
            self.rows.setdefault(place, row)

    def replace(self, rows: dict[Place, Row]) -> None:
        """All rows as they are stored; what a message changed since is kept."""
        self.rows = rows | {place: self.rows[place] for place in self.changed}
        self.stored = set(rows)
        self.all = True

    def put(self, rows: dict[Place, Row]) -> None:
        """Rows as a message left them, not stored yet."""
        self.rows |= rows
        self.changed |= rows.keys()

    def written(self) -> None:
        """All of it is stored."""
        for place in self.changed:
            if same(self.rows[place], NOTHING):
                del self.rows[place]
                self.stored.discard(place)
            else:
                self.stored.add(place)
        self.changed.clear()
        self.all = False


class Memory:
    """What sessions held when a transaction stored them, each with its row."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Session, Held]] = {}
        self._holdings: int = 0

    def take(self, id_: str, stored: Session | None) -> Held | None:
        """What a session holds, if its row is as it was left. Memory lets go of it."""
        known = self._known.pop(id_, None)
        if known is None:
            return None
        session, held = known
        self._holdings -= len(held.rows)
        return held if stored is not None and same(session, stored) else None

    def leave(self, session: Session, held: Held) -> None:
        """Remember a session as it is stored, and what it holds."""
        self._known[session.id] = session, held
        self._holdings += len(held.rows)
        if self._holdings > MOST:
            self._known.clear()
            self._holdings = 0


def memory_of(connection: Connection) -> Memory:
    """The memory of a connection; it goes with it, and with a transaction that is undone."""
    memory: Memory | None = connection.info.get(_KEY)
    if memory is None:
        memory = connection.info[_KEY] = Memory()
    return memory
