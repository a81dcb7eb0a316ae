"""Documents of the contract with every member set, made from the types themselves."""

import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

MESSAGES = (
    "ConfigAnswer", "RouterConfig", "Endpoints", "Signals", "SyncRequest", "SyncAnswer", "SyncRefusal", "PutBudgets",
    "PutCards", "PutCosts", "SpendAnswer", "SpendList", "UsageAnswer", "WriteOff", "DrainReport",
)  # fmt: skip
"""What travels by itself; all other structs are parts of these."""


def documents(contract: types.ModuleType) -> dict[str, Any]:
    """Each message that a contract has as JSON, every member set, each word of its literals in an element of a list."""
    return {name: plain(_sample(getattr(contract, name), name)) for name in MESSAGES if hasattr(contract, name)}


def plain(message: msgspec.Struct) -> Any:
    """A message as JSON reads it."""
    return msgspec.json.decode(msgspec.json.encode(message))


def with_strangers(document: Any) -> Any:
    """The document with a member that nobody knows in each of its objects; tables by number have no members."""
    if isinstance(document, Mapping):
        strange = {} if all(key.isdecimal() for key in document) else {"xUnknown": [1, {"deep": True}]}
        return {**{key: with_strangers(value) for key, value in document.items()}, **strange}
    return [with_strangers(item) for item in document] if isinstance(document, list) else document


def covers(whole: Any, part: Any) -> bool:
    """Whether everything that ``part`` says is said by ``whole`` in the same words."""
    if isinstance(part, Mapping):
        return isinstance(whole, Mapping) and all(
            key in whole and covers(whole[key], value) for key, value in part.items()
        )
    if isinstance(part, list):
        same = isinstance(whole, list) and len(whole) == len(part)
        return same and all(covers(one, other) for one, other in zip(whole, part, strict=True))
    return bool(whole == part)


def _sample(kind: Any, name: str) -> Any:
    """A value of a type that differs from its member's default."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = msgspec.structs.fields(kind)
        return kind(**{field.name: _sample(field.type, field.name) for field in fields})
    if origin in {Union, types.UnionType}:
        return _sample(next(one for one in inner if one is not type(None)), name)
    if origin is Literal:
        return inner[-1]
    if origin is tuple:
        return _items(inner, name)
    if origin is dict:
        return {"7": _sample(inner[1], name)}
    return {int: 7_001 + len(name), float: 7_001.5 + len(name), str: f"some {name}", bool: True}[kind]


def _items(inner: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    if inner[-1] is not ...:
        return tuple(_sample(one, name) for one in inner)
    words = get_args(inner[0]) if get_origin(inner[0]) is Literal else ()
    return tuple(words) or (_sample(inner[0], name),)
