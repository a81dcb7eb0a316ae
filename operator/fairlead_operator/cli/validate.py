"""``fairlead validate``: what of ModelPools, RoutingPolicies and CostBudgets in files cannot work; no cluster asked."""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cache
from typing import Final
from zoneinfo import available_timezones

from pydantic import ValidationError

from fairlead_operator.api.check import meant, shown, violations
from fairlead_operator.api.structural import Schema, root_schema
from fairlead_operator.api.v1alpha1 import (
    API_VERSION,
    GROUP,
    KINDS,
    CostBudget,
    Kind,
    ModelPool,
    ModelPoolSpec,
    Resource,
    RoutingPolicy,
)
from fairlead_operator.cli.ask import FINE, LOOK, USAGE_ERROR, UsageError, complain
from fairlead_operator.cli.manifests import Document, Finding, read
from fairlead_operator.decide.accelerator import candidates_on_record
from fairlead_operator.decide.budgets import budget_problems
from fairlead_operator.decide.fit import judge
from fairlead_operator.decide.models import Callers
from fairlead_operator.decide.problems import Problem
from fairlead_operator.render.deployment import validate_pool
from fairlead_operator.render.router_config import PoolInput
from fairlead_operator.settings import read_settings
from fairlead_operator.status.routingpolicy import PolicyView, resolved_finding

BY_KIND: Final = {kind.kind: kind for kind in KINDS}
SHOWN: Final = 200
"""Findings that are printed at most."""


@dataclass(frozen=True, slots=True)
class Checked:
    """One object that is right by its schema."""

    document: Document
    resource: Resource


@dataclass(slots=True)
class Report:
    """What files hold: the findings, the objects that are right by their schemas, and how many there are of what.

    ``refused``: ``namespace/name`` of what is wrong by its schema, whatever its kind was meant to be.
    """

    findings: list[Finding] = field(default_factory=list)
    checked: list[Checked] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    kinds: Counter[str] = field(default_factory=Counter)
    others: int = 0

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop an object from being applied."""
        return [finding for finding in self.findings if finding.severity == "error"]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", environment: Mapping[str, str]) -> None:
    """The command line of ``fairlead validate``."""
    text = (
        "Checks Fairlead's objects in YAML files without a cluster. One line for each finding; 1 if there is an error."
    )
    parser = commands.add_parser("validate", help="check YAML files without a cluster", description=text)
    add_files(parser, environment)
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")


def add_files(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """Which files, in which namespace objects are that name none, and what pools run that name no image."""
    text = "files, folders of .yaml files, or - for the standard input; may be repeated"
    parser.add_argument("-f", "--filename", action="extend", nargs="+", required=True, metavar="FILE", help=text)
    text = "namespace of objects that name none (default: default)"
    parser.add_argument("-n", "--namespace", default="default", help=text)
    image = read_settings(environment).engine_image
    text = f"engine image of the release, as in the chart's values (default {image})"
    parser.add_argument("--engine-image", default=image, help=text)


def run(options: argparse.Namespace) -> int:
    """0 = fine, 1 = an error (with --strict a warning too), 2 = a wrong command line."""
    try:
        report = check(options.filename, options.namespace, options.engine_image)
    except UsageError as error:
        return complain(str(error), USAGE_ERROR)
    for finding in report.findings[:SHOWN]:
        print(finding)
    if len(report.findings) > SHOWN:
        print(f"{len(report.findings) - SHOWN} more findings are not shown.")
    counts = Counter[str](finding.severity for finding in report.findings)
    failed = counts["error"] + (counts["warning"] if options.strict else 0)
    print(_summary(report, counts, failed))
    return LOOK if failed else FINE


def _summary(report: Report, counts: Mapping[str, int], failed: int) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.kinds.items()))
    notes = ", ".join(_counted(counts[name], name) for name in ("error", "warning", "note") if counts[name])
    skipped = f"{_counted(report.others, 'object')} of other kinds not checked" if report.others else ""
    said = [part for part in (kinds or "nothing of Fairlead", skipped, notes) if part]
    return f"{'failed' if failed else 'ok'}: {'; '.join(said)}"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count > 1 else ''}"


def check(files: Iterable[str], namespace: str, image: str = "") -> Report:
    """What the files hold and what is wrong with it. ``image`` is the release's engine image.

    Raises:
        UsageError: a file cannot be read.
    """
    report = Report()
    for one in read(files):
        if isinstance(one, Finding):
            report.findings.append(one)
        elif not _ours(one):
            report.findings += _stray(one)
            report.others += 1
        else:
            _by_schema(one, namespace, report)
    for checked in report.checked:
        report.findings += _meaning(checked, image)
    report.findings += _together(report.checked, report.refused)
    report.findings.sort(key=lambda one: (one.file, one.line))
    return report


def _by_schema(document: Document, namespace: str, report: Report) -> None:
    """Add what the schema says against the object, or the object."""
    report.kinds[str(document.value.get("kind"))] += 1
    wrong = list(_schema_findings(document))
    report.findings += wrong
    if not wrong:
        report.checked += _parsed(document, namespace, report.findings)
    elif isinstance(meta := document.value.get("metadata"), dict):
        report.refused.add(f"{meta.get('namespace', namespace)}/{meta.get('name')}")


def _ours(document: Document) -> bool:
    """Whether it is meant for us: by its group, also misspelt, or by its kind where it has none."""
    version, kind = document.value.get("apiVersion"), document.value.get("kind")
    group = version.partition("/")[0] if isinstance(version, str) else ""
    return group.startswith(GROUP.partition(".")[0]) or (kind in BY_KIND and "." not in group)


def _stray(document: Document) -> Iterator[Finding]:
    for name in ("apiVersion", "kind"):
        if not isinstance(document.value.get(name), str):
            yield document.finding((name,), f"is missing. Write apiVersion: {API_VERSION} and a kind")


@cache
def _schema(kind: str) -> Schema:
    return root_schema(BY_KIND[kind])


def _schema_findings(document: Document) -> Iterator[Finding]:
    value = document.value
    version, kind = value.get("apiVersion"), value.get("kind")
    if version != API_VERSION:
        yield document.finding(("apiVersion",), f"is {shown(version)}. Write {API_VERSION}")
        return
    if kind not in BY_KIND:
        close = meant(str(kind), list(BY_KIND))
        hint = f"Did you mean {close}?" if close else f"Kinds are {', '.join(BY_KIND)}"
        yield document.finding(("kind",), f"is {shown(kind)}. {hint}")
        return
    yield from _metadata_findings(document)
    for one in violations(_schema(kind), {name: item for name, item in value.items() if name != "status"}):
        yield document.finding(one.path, one.text)


def _metadata_findings(document: Document) -> Iterator[Finding]:
    meta = document.value.get("metadata")
    if not isinstance(meta, dict):
        return
    name = meta.get("name")
    if name is None:
        yield document.finding(("metadata", "name"), "is missing. Give the object a name.")
        return
    for one in violations(_NAME, name):
        yield document.finding(("metadata", "name"), one.text)


_NAME: Final[Schema] = {
    "type": "string",
    "description": "Write lower-case letters, digits, - and dots.",
    "maxLength": 253,
    "minLength": 1,
    "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
}
"""Of every object's name, as the API server checks it."""


def _parsed(document: Document, namespace: str, found: list[Finding]) -> list[Checked]:
    kind: Kind = BY_KIND[document.value["kind"]]
    meta = {"namespace": namespace, **document.value["metadata"]}
    try:
        return [Checked(document, kind.resource.parse({**document.value, "metadata": meta, "status": {}}))]
    except ValidationError as error:
        first = error.errors()[0]
        found.append(document.finding(tuple(first["loc"]), f"{first['msg']}."))
        return []


def _meaning(one: Checked, image: str) -> list[Finding]:
    """What the operator would say of the object's spec."""
    resource = one.resource
    if isinstance(resource, ModelPool):
        fit = judge(candidates_on_record(resource.spec))
        found = [_of_problem(one.document, problem) for problem in (*validate_pool(resource, image), *fit.problems)]
        blind = fit.note and all(finding.severity != "error" for finding in found)
        note = [one.document.finding("spec.variants", fit.note, "note")] if blind else []
        return [*found, *_loose(one.document, resource.spec), *note]
    if isinstance(resource, CostBudget):
        # Which namespaces are the platform's, the chart says: here all are taken for it.
        problems = budget_problems(resource, (resource.namespace,), available_timezones())
        return [_of_problem(one.document, problem) for problem in problems]
    return []


def _loose(document: Document, spec: ModelPoolSpec) -> Iterator[Finding]:
    """Checkpoints that may be others at each start."""
    own = [(f"spec.variants[{one.name}].model", one.model) for one in spec.variants if one.model is not None]
    places = [*([("spec.model", spec.model)] if len(own) < len(spec.variants) else []), *own]
    for path, source in places:
        if source.loose:
            text = f"each new pod loads the head of {source.uri} as it then is. Set revision to a commit."
            yield document.finding(path, text, "warning")


def _of_problem(document: Document, problem: Problem) -> Finding:
    text = problem.message.removeprefix(problem.path).lstrip() if problem.path else problem.message
    return document.finding(problem.path, text, "warning" if problem.warning else "error")


def _together(checked: Sequence[Checked], refused: AbstractSet[str]) -> Iterator[Finding]:
    """What is wrong between the objects of all files; of those that were refused more is not said."""
    first: dict[tuple[str, str], Checked] = {}
    for one in checked:
        kind, key = str(one.document.value["kind"]), one.resource.key
        before = first.setdefault((kind, key), one)
        if before is not one:
            place = f"{before.document.file}:{before.document.finding((), '').line}"
            text = f"{kind} {key} is in {place} too, and the last one applied would stay. Rename or remove one of them."
            yield one.document.finding(("metadata", "name"), text)
    pools = {one.resource.key: one.resource for one in first.values() if isinstance(one.resource, ModelPool)}
    policies = [(one, one.resource) for one in first.values() if isinstance(one.resource, RoutingPolicy)]
    for one, policy in policies:
        yield from _policy_findings(one.document, policy, pools, refused)
    yield from _name_conflicts(policies)


def _policy_findings(
    document: Document, policy: RoutingPolicy, pools: Mapping[str, ModelPool], refused: AbstractSet[str]
) -> Iterator[Finding]:
    """Whether its pools are there and hold what its routes take."""
    named = {name: f"{policy.namespace}/{name}" for route in policy.spec.routes for name in route.pool_names}
    absent = [key for key in named.values() if key not in pools]
    for key in sorted(set(absent) - refused):
        yield document.finding("spec.routes", f"ModelPool {key} is in none of these files.", "note")
    if absent:
        return
    view = PolicyView(
        policy=policy,
        callers=Callers(namespaces=()),
        pools={name: PoolInput(pools[key]) for name, key in named.items()},
        ready={},
        namespaces_total=0,
        routers_total=0,
        routers_programmed=0,
        address="",
    )
    told = resolved_finding(view)
    if told.status == "False":
        yield document.finding("spec.routes", told.message, "warning")


def _name_conflicts(policies: Iterable[tuple[Checked, RoutingPolicy]]) -> Iterator[Finding]:
    """Model names that two policies of one namespace answer to."""
    owners: dict[tuple[str, str], RoutingPolicy] = {}
    for one, policy in policies:
        for index, model in enumerate(policy.spec.models):
            owner = owners.setdefault((policy.namespace, model), policy)
            if owner is not policy:
                text = f"{model} is a model of RoutingPolicy {owner.name} too: the older answers. Choose another name."
                yield one.document.finding(("spec", "models", index), text, "warning")
