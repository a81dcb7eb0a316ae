"""The OpenAPI document of the ledger's HTTP, from the wire messages themselves."""

from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec

from fairlead_router.contract import (
    PutBudgets,
    PutCards,
    PutCosts,
    SpendAnswer,
    SpendList,
    SyncAnswer,
    SyncRefusal,
    SyncRequest,
    UsageAnswer,
    WriteOff,
)

MESSAGES = (
    SyncRequest, SyncAnswer, SyncRefusal, PutBudgets, PutCards, PutCosts, SpendAnswer, SpendList, UsageAnswer, WriteOff
)  # fmt: skip
FILTERS = ("namespace", "caller", "feature", "model", "pool")
REF = "#/components/schemas/{name}"


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    _, schemas = msgspec.json.schema_components(MESSAGES, ref_template=REF)
    token = {"type": "http", "scheme": "bearer", "description": "ServiceAccount token, audience fairlead.dev/ledger"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Fairlead ledger", "version": version("fairlead")},
        "security": [{"token": []}],
        "paths": _paths(),
        "components": {"schemas": schemas, "securitySchemes": {"token": token}},
    }


def _paths() -> dict[str, Any]:
    time = ("since", "until")
    return {
        "/v1/sync": {"post": _call("Report, return, renew and ask", SyncAnswer, body=SyncRequest)},
        "/v1/budgets": {"put": _call("Replace all budgets", None, body=PutBudgets)},
        "/v1/cards": {
            "put": _call("Add rate cards", None, body=PutCards),
            "get": _call("Newest card of each pool, or all of one", PutCards, query=("pool",)),
        },
        "/v1/costs": {
            "put": _call("Merge running totals of cost", None, body=PutCosts),
            "get": _call("Stored totals of a time", PutCosts, query=time),
        },
        "/v1/spend": {
            "get": _call("All budgets, or the one named", SpendList, SpendAnswer, query=("namespace", "name", "at"))
        },
        "/v1/usage": {
            "get": _call("Usage by dimensions, and bills", UsageAnswer, query=("by", *time, "step", *FILTERS))
        },
        "/v1/write-off": {"post": _call("Declare what a dead session held as not spent", None, body=WriteOff)},
    }


def _call(
    summary: str,
    *answers: type[msgspec.Struct] | None,
    body: type[msgspec.Struct] | None = None,
    query: tuple[str, ...] = (),
) -> dict[str, Any]:
    schemas = [_ref(answer) if answer else {"type": "object"} for answer in answers]
    call: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": {"description": "Done", "content": _json({"oneOf": schemas} if len(schemas) > 1 else schemas[0])},
            "default": {"description": "Refused", "content": _json(_ref(SyncRefusal))},
        },
        "parameters": [{"name": name, "in": "query", "schema": {"type": "string"}} for name in query],
    }
    return call | ({"requestBody": {"required": True, "content": _json(_ref(body))}} if body else {})


def _ref(message: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": REF.format(name=message.__name__)}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
