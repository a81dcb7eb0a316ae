"""What compiled modules cannot say themselves: keywords of a class, and that two records are equal."""

import msgspec


class Frozen(msgspec.Struct, frozen=True):
    """A value: equal to those that hold the same, and hashable."""


class Light(msgspec.Struct, frozen=True, gc=False):
    """A value that holds nothing which could hold it: the collector need not know of it."""


def same(one: object, other: object) -> bool:
    """Whether two records hold the same. In a compiled module ``==`` between records asks whether they are one."""
    return one == other
