"""``fairlead key``: API keys of a namespace. The cluster holds their hashes; the key itself is printed once."""

import argparse
import asyncio
import hashlib
import os
import secrets
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml
from kubernetes.aio.config import ConfigException, list_kube_config_contexts
from pydantic import ValidationError

from fairlead_operator.api.v1alpha1 import CostBudget, EventReason
from fairlead_operator.cli.ask import DAY_MS, UsageError, complain
from fairlead_operator.cli.cost import aligned
from fairlead_operator.clock import Clock, SystemClock
from fairlead_operator.decide.api_keys import (
    API_KEYS,
    EXPIRES,
    FEATURE,
    HASH,
    LABEL_API_KEY,
    NAME,
    PREFIX,
    KeyFact,
    is_feature,
    key_fact,
)
from fairlead_operator.decide.facts import time_text
from fairlead_operator.errors import ApiError, ConflictError, ForbiddenError, NotFoundError, UnreachableError
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.resources import CONFIG_MAPS, COST_BUDGETS, NAMESPACES
from fairlead_operator.kube.session import login, open_session
from fairlead_operator.render.ledger_budgets import covered_namespaces
from fairlead_operator.units import parse_duration_ms
from fairlead_router.contract import MAX_LABEL

KEY_BYTES = 32
LONGEST_DAYS = 3650
WAIT_S = 10.0
POLL_S = 0.5
REFUSED, USAGE_ERROR, UNREACHABLE = 1, 2, 3
UNCONFIRMED = "Unconfirmed"
CORE_EVENTS = "/api/v1/namespaces/{namespace}/events"
DEFAULT_KUBECONFIG = "~/.kube/config"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key to be made. ``expires_ms`` 0 = never."""

    name: str
    namespace: str
    feature: str
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Created:
    """What ``fairlead key create`` prints."""

    name: str
    namespace: str
    object: str
    key: str
    caller: str
    feature: str
    expires: str
    state: str
    """KeyInForce, KeyRefused, or Unconfirmed while the operator has said nothing."""
    message: str
    budgets: tuple[str, ...]
    budgets_complete: bool
    """False: other namespaces' budgets may not be read."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of ``fairlead key list``."""

    namespace: str
    name: str
    feature: str
    created: str
    expires: str
    caller: str
    state: str


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command line of ``fairlead key``."""
    common = argparse.ArgumentParser(add_help=False)
    add_cluster(common)
    common.add_argument("-o", "--output", choices=["table", "json"], default="table", help="table (default), or json")
    key = commands.add_parser("key", help="API keys of a namespace: create, list, revoke")
    actions = key.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", parents=[common], help="make a key and print it once")
    create.add_argument("name", help="a DNS label; requests are charged to the namespace and caller key:NAME")
    create.add_argument("--feature", default="", help="feature of requests that name none by X-Fairlead-Feature")
    create.add_argument("--expires", default="", help="how long it is good, such as 90d or 12h (default: for ever)")
    listing = actions.add_parser("list", parents=[common], help="keys, without their secrets")
    listing.add_argument("-A", "--all-namespaces", action="store_true", help="those of every namespace")
    revoke = actions.add_parser("revoke", parents=[common], help="end a key: routers refuse it within seconds")
    revoke.add_argument("name", help="the name that it was made with")


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Which cluster and namespace, as ``place`` reads them."""
    parser.add_argument("-n", "--namespace", default="", help="namespace (default: the kubeconfig's)")
    parser.add_argument(
        "--kubeconfig", default="", help="default: $KUBECONFIG, ~/.kube/config, or the pod's own account"
    )
    parser.add_argument("--context", default="", help="context of the kubeconfig (default: the current one)")


def run(options: argparse.Namespace) -> int:
    """Run one action; 0 = done, 1 = refused, 2 = the command line cannot be used, 3 = no answer."""
    return carry_out(_run(options), _refusal)


def carry_out(work: Coroutine[Any, Any, tuple[str, int]], refusal: Callable[[ApiError], str]) -> int:
    """Print what the work on a cluster comes to and return its exit status, or say why it came to nothing."""
    try:
        text, status = asyncio.run(work)
    except UsageError as error:
        return complain(str(error), USAGE_ERROR)
    except UnreachableError as error:
        return complain(f"{error.message}. Is this the right cluster?", UNREACHABLE)
    except ApiError as error:
        return complain(refusal(error), REFUSED)
    print(text)
    return status


async def _run(options: argparse.Namespace) -> tuple[str, int]:
    """What to print, and the exit status."""
    kubeconfig, namespace = place(options)
    clock = SystemClock()
    wanted = parse_wanted(options, namespace, clock.now_ms()) if options.action == "create" else None
    with readable():
        who = await login(kubeconfig, options.context)
        session = open_session(who)
    async with session:
        api = Api(session, who.server)
        if wanted is not None:
            as_json = options.output == "json"
            made = await create(api, wanted, clock, show=_silent if as_json else _print)
            return _json(made) if as_json else created_text(made), REFUSED * (made.state == EventReason.KEY_REFUSED)
        if options.action == "list":
            listed = await list_keys(api, "" if options.all_namespaces else namespace, clock.now_ms())
            return _json(listed) if options.output == "json" else list_text(listed), 0
        caller = await revoke(api, namespace, options.name)
        text = f"{caller} of namespace {namespace} is revoked: routers refuse it within 5s."
        return _json({"namespace": namespace, "caller": caller}) if options.output == "json" else text, 0


def place(options: argparse.Namespace) -> tuple[str, str]:
    """The kubeconfig (empty: the pod's own account) and the namespace."""
    kubeconfig = options.kubeconfig or os.environ.get("KUBECONFIG", "")
    if not kubeconfig and Path(DEFAULT_KUBECONFIG).expanduser().exists():
        kubeconfig = str(Path(DEFAULT_KUBECONFIG).expanduser())
    if options.namespace or not kubeconfig:
        return kubeconfig, options.namespace or "default"
    with readable():
        contexts, current = list_kube_config_contexts(kubeconfig)  # type: ignore[no-untyped-call]
        named = [one for one in contexts if one["name"] == options.context] or [current]
        return kubeconfig, named[0]["context"].get("namespace") or "default"


@contextmanager
def readable() -> Iterator[None]:
    """Say what is wrong with a kubeconfig, whatever the library makes of it."""
    try:
        yield
    except (ConfigException, yaml.YAMLError, OSError, TypeError, AttributeError, KeyError) as error:
        raise UsageError(f"no cluster to ask: {error}. Name one with --kubeconfig and --context.") from error


def parse_wanted(options: argparse.Namespace, namespace: str, now_ms: int) -> Wanted:
    """The key that the command line asks for.

    Raises:
        UsageError: it cannot be made.
    """
    if not NAME.fullmatch(options.name):
        raise UsageError(f"{options.name!r} is no name for a key: write a-z, 0-9 and -, at most 63 characters")
    if not is_feature(options.feature):
        raise UsageError(f"--feature must have at most {MAX_LABEL} printable ASCII characters")
    length = parse_expires(options.expires) if options.expires else 0
    return Wanted(options.name, namespace, options.feature, now_ms + length if length else 0)


def parse_expires(text: str) -> int:
    """Milliseconds of ``90d``, ``12h`` or ``1h30m``.

    Raises:
        UsageError: the text is no such time, or longer than a key lives.
    """
    days = text.removesuffix("d")
    try:
        if days != text and days.isascii() and days.isdecimal() and len(days) < 5:  # noqa: PLR2004 - 9999 days
            length = int(days) * DAY_MS
        else:
            length = parse_duration_ms(text)
    except ValueError:
        length = 0
    if not 0 < length <= LONGEST_DAYS * DAY_MS:
        raise UsageError(f"--expires {text!r} is no lifetime: write 90d, 12h or 1h30m, {LONGEST_DAYS}d at most")
    return length


def new_key() -> str:
    """A key: 256 random bits, and a beginning by which scanners of source code find it."""
    return f"fl_{secrets.token_urlsafe(KEY_BYTES)}"


def config_map(wanted: Wanted, key: str) -> Object:
    """The object that holds the key's hash. It is immutable: another key is another object."""
    data = {HASH: hashlib.sha256(key.encode()).hexdigest()}
    if wanted.feature:
        data[FEATURE] = wanted.feature
    if wanted.expires_ms:
        data[EXPIRES] = time_text(wanted.expires_ms)
    meta = {"name": PREFIX + wanted.name, "namespace": wanted.namespace, "labels": {LABEL_API_KEY: "true"}}
    kind = {"apiVersion": CONFIG_MAPS.api_version, "kind": CONFIG_MAPS.kind}
    return {**kind, "metadata": meta, "immutable": True, "data": data}


async def create(api: Api, wanted: Wanted, clock: Clock, show: Callable[[str], None]) -> Created:
    """Make the key, ``show`` it at once, and wait at most WAIT_S for the operator to say that every router has it."""
    key = new_key()
    body = config_map(wanted, key)
    made = await api.create(CONFIG_MAPS, wanted.namespace, body)
    where = f"ConfigMap {wanted.namespace}/{body['metadata']['name']}"
    show(f"{where} holds the hash. The key is shown once:\n\n{key}\n")
    state, message = await _confirmation(api, made, clock) or (UNCONFIRMED, _unconfirmed())
    budgets, complete = await _budgets(api, wanted.namespace)
    return Created(
        name=wanted.name,
        namespace=wanted.namespace,
        object=where,
        key=key,
        caller=f"key:{wanted.name}",
        feature=wanted.feature,
        expires=body["data"].get(EXPIRES, ""),
        state=state,
        message=message,
        budgets=budgets,
        budgets_complete=complete,
    )


async def _confirmation(api: Api, made: Object, clock: Clock) -> tuple[str, str] | None:
    """Reason and text of the operator's Event about the object; nothing if there is none, or none may be read."""
    uid, namespace = made["metadata"]["uid"], made["metadata"]["namespace"]
    query = {"fieldSelector": f"involvedObject.uid={uid}"}
    until = clock.monotonic() + WAIT_S
    while True:
        try:
            found = await api.request("GET", CORE_EVENTS.format(namespace=namespace), query=query, what="events")
        except ApiError:
            return None
        for event in found.get("items") or ():
            about = event.get("involvedObject") or event.get("regarding") or {}
            if about.get("uid") == uid and event.get("reason") in {EventReason.KEY_IN_FORCE, EventReason.KEY_REFUSED}:
                return event["reason"], str(event.get("message") or event.get("note") or "")
        if clock.monotonic() >= until:
            return None
        await clock.sleep(POLL_S)


async def _budgets(api: Api, namespace: str) -> tuple[tuple[str, ...], bool]:
    """The budgets that the key's requests are held to, and whether all could be read."""
    try:
        labels = (await api.get(NAMESPACES, "", namespace))["metadata"].get("labels") or {}
        bodies, complete = (await api.list(COST_BUDGETS)).items, True
    except ApiError:
        labels, complete = {}, False
        try:
            bodies = (await api.list(COST_BUDGETS, namespace=namespace)).items
        except ApiError:
            bodies = []
    budgets = [budget for body in bodies if (budget := _parsed(body)) is not None]
    # The API server admits selectors in platform namespaces only, so whoever has one may have it.
    covering = [one for one in budgets if namespace in covered_namespaces(one, {namespace: labels}, (one.namespace,))]
    return tuple(sorted(one.key if one.namespace != namespace else one.name for one in covering)), complete


def _parsed(body: Object) -> CostBudget | None:
    try:
        return CostBudget.parse(body)
    except ValidationError:
        return None


async def list_keys(api: Api, namespace: str, now_ms: int) -> list[Listed]:
    """The keys of a namespace, of all without one."""
    facts = [key_fact(body) for body in (await api.list(CONFIG_MAPS, namespace=namespace, labels=API_KEYS)).items]
    return [_listed(fact, now_ms) for fact in sorted(facts, key=lambda one: (one.namespace, one.object_name))]


async def revoke(api: Api, namespace: str, name: str) -> str:
    """Delete a key's object; answers the caller that it was.

    Raises:
        UsageError: there is no such key.
    """
    try:
        body = await api.get(CONFIG_MAPS, namespace, PREFIX + name)
    except NotFoundError as error:
        raise UsageError(f"namespace {namespace} has no key {name}: see fairlead key list -n {namespace}") from error
    meta = body["metadata"]
    if (meta.get("labels") or {}).get(LABEL_API_KEY) != "true":
        raise UsageError(f"ConfigMap {namespace}/{PREFIX}{name} is no key: it has no label {LABEL_API_KEY}=true")
    await api.delete(CONFIG_MAPS, namespace, meta["name"], meta["uid"])
    return f"key:{name}"


def created_text(made: Created) -> str:
    """What is known of a key that was shown."""
    more = "" if made.budgets_complete else ", and those of platform namespaces that you may not list"
    lines = [
        made.message,
        f"caller   {made.caller} of namespace {made.namespace}",
        f"feature  {made.feature or '-'}",
        f"expires  {made.expires or 'never'}",
        f"budgets  {', '.join(made.budgets) or 'none'}{more}",
    ]
    return "\n".join(lines)


def list_text(listed: Sequence[Listed]) -> str:
    """The table."""
    head = ("NAMESPACE", "NAME", "FEATURE", "CREATED", "EXPIRES", "CALLER", "STATE")
    if not listed:
        return "There are no API keys here. fairlead key create makes one."
    rows = [
        (one.namespace, one.name, one.feature or "-", one.created, one.expires or "never", one.caller or "-", one.state)
        for one in listed
    ]
    return "\n".join(aligned([head, *rows], len(head)))


def _listed(fact: KeyFact, now_ms: int) -> Listed:
    created, name = time_text(fact.created_ms), fact.object_name.removeprefix(PREFIX)
    if fact.key is None:
        return Listed(fact.namespace, name, "", created, "", "", f"refused: {fact.problem}")
    key = fact.key
    state = "expired" if 0 < key.expires_ms <= now_ms else "valid"
    expires = time_text(key.expires_ms) if key.expires_ms else ""
    return Listed(fact.namespace, name, key.feature, created, expires, f"key:{name}", state)


def _refusal(error: ApiError) -> str:
    """What the API server refused, and what to do."""
    match error:
        case ConflictError():
            return f"there is a key of this name already ({error.what}). Revoke it first, or choose another name."
        case ForbiddenError():
            return f"you may not {error.verb} {error.what}: {error.message}. The role edit of the namespace is enough."
        case _:
            return str(error)


def _json(value: Any) -> str:
    plain = [asdict(one) for one in value] if isinstance(value, list) else value
    return msgspec.json.encode(plain if isinstance(plain, list | dict) else asdict(plain)).decode()


def _unconfirmed() -> str:
    return (
        f"Routers take it within 5s of now, but none was confirmed within {WAIT_S:.0f}s. Is the operator up? "
        "kubectl describe configmap shows what it says."
    )


def _print(text: str) -> None:
    print(text, flush=True)


def _silent(_text: str) -> None:
    """JSON is one document, printed at the end."""
