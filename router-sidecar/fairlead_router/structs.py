"""What compiled modules cannot say themselves: keywords of a class, classes of weak references, what they are."""

from types import ModuleType
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from fairlead_router.heads import Template
    from fairlead_router.plan import Plan
    from fairlead_router.server import Head


class Frozen(msgspec.Struct, frozen=True):
    """A value: equal to those that hold the same, and hashable."""


class Kept(msgspec.Struct, eq=False):
    """A thing of its own: equal to itself only."""


class Known:
    """A head that a connection may repeat. Kept by weak references, which a compiled class does not survive."""

    __slots__ = ("__weakref__", "head", "template")

    def __init__(self, template: "Template", head: "Head") -> None:
        self.template = template
        self.head = head


class Shared:
    """A plan that owners share. Kept by weak references, as ``Known``."""

    __slots__ = ("__weakref__", "plan")

    def __init__(self, plan: "Plan") -> None:
        self.plan = plan


def is_compiled(module: ModuleType) -> bool:
    """Whether a module runs as machine code (see hack/compile.py) instead of from its source."""
    return not str(module.__file__).endswith(".py")
