"""The rules of the schemas, evaluated without an API server: the part of CEL that they are written in.

``has``, ``size``, ``string``, ``contains``, ``startsWith``, ``all``, ``exists``, ``exists_one``, comparisons, ``in``,
``!``, ``&&`` and ``||``. tests/unit/test_api_cel.py compares the answers with those of a whole CEL implementation.
"""

import ast
import functools
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

_TOKEN = re.compile(r"\s+|'[^'\\]*'|\d+|[A-Za-z_]\w*|&&|\|\||[=!<>]=|[][()<>!,.-]")
_WORDS: Final[Mapping[str, str]] = {
    "&&": " and ",
    "||": " or ",
    "!": "~",
    "in": " in ",
    "true": "True",
    "false": "False",
}
_COMPARE: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, among: one in among,
}
_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {"size": len, "string": str}
_METHODS: Final[Mapping[str, Callable[..., Any]]] = {"contains": operator.contains, "startsWith": str.startswith}
_MACROS: Final = frozenset({"all", "exists", "exists_one"})
Names = Mapping[str, Any]


class RuleError(Exception):
    """A rule is not of the part of CEL that is known here, or reads a field that its object does not have."""


def holds(rule: str, value: Any) -> bool:
    """Whether the rule is true of ``self`` = value.

    Raises:
        RuleError: it has no answer.
    """
    try:
        return _evaluate(_parsed(rule), {"self": value}) is True
    except (KeyError, TypeError, AttributeError) as error:
        raise RuleError(f"{rule}: {type(error).__name__} {error}") from error


@functools.cache
def _parsed(rule: str) -> ast.expr:
    """The rule as an expression of Python, which has the same precedence: ``!`` is written ``~`` for that."""
    words, at = [], 0
    while at < len(rule):
        found = _TOKEN.match(rule, at)
        if found is None:
            raise RuleError(f"{rule}: {rule[at : at + 10]!r} is not known here")
        words.append(_translated(found[0]))
        at = found.end()
    try:
        return ast.parse("".join(words).strip(), mode="eval").body
    except SyntaxError as error:
        raise RuleError(f"{rule}: {error.msg}") from error


def _translated(token: str) -> str:
    """Names get a letter in front: ``from`` and others are no names in Python."""
    if token in _WORDS:
        return _WORDS[token]
    return f"x{token}" if token[0].isalpha() or token[0] == "_" else token


def _evaluate(node: ast.expr, names: Names) -> Any:
    reader = _READERS.get(type(node))
    if reader is None:
        raise RuleError(f"{ast.unparse(node)} is not known here")
    return reader(node, names)


def _not(node: ast.UnaryOp, names: Names) -> Any:
    if not isinstance(node.op, ast.Invert):
        raise RuleError(f"{ast.unparse(node)} is not known here")
    return not _evaluate(node.operand, names)


def _both(node: ast.BoolOp, names: Names) -> Any:
    parts = (_evaluate(one, names) for one in node.values)
    return all(parts) if isinstance(node.op, ast.And) else any(parts)


def _compared(node: ast.Compare, names: Names) -> Any:
    match node:
        case ast.Compare(ops=[only], comparators=[right]) if type(only) in _COMPARE:
            return _COMPARE[type(only)](_evaluate(node.left, names), _evaluate(right, names))
        case _:
            raise RuleError(f"{ast.unparse(node)} is not known here")


def _called(node: ast.Call, names: Names) -> Any:
    match node:
        case ast.Call(func=ast.Name(id="xhas"), args=[ast.Attribute() as field]):
            return field.attr[1:] in _evaluate(field.value, names)
        case ast.Call(func=ast.Name(id=name), args=[argument]) if name[1:] in _FUNCTIONS:
            return _FUNCTIONS[name[1:]](_evaluate(argument, names))
        case ast.Call(func=ast.Attribute(attr=name) as method, args=[argument]) if name[1:] in _METHODS:
            return _METHODS[name[1:]](_evaluate(method.value, names), _evaluate(argument, names))
        case ast.Call(func=ast.Attribute(attr=name) as macro, args=[ast.Name(id=item), body]) if name[1:] in _MACROS:
            answers = [_evaluate(body, {**names, item[1:]: one}) for one in _evaluate(macro.value, names)]
            return {"all": all(answers), "exists": any(answers), "exists_one": answers.count(True) == 1}[name[1:]]
        case _:
            raise RuleError(f"{ast.unparse(node)} is not known here")


_READERS: Final[Mapping[type[ast.expr], Callable[[Any, Names], Any]]] = {
    ast.Constant: lambda node, _: node.value,
    ast.Name: lambda node, names: names[node.id[1:]],
    ast.Attribute: lambda node, names: _evaluate(node.value, names)[node.attr[1:]],
    ast.List: lambda node, names: [_evaluate(one, names) for one in node.elts],
    ast.UnaryOp: _not,
    ast.BoolOp: _both,
    ast.Compare: _compared,
    ast.Call: _called,
}
