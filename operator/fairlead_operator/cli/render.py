"""``fairlead render``: what the operator would apply for the ModelPools in files, without a cluster."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from fairlead_operator.api.v1alpha1 import ModelPool
from fairlead_operator.cli.ask import FINE, LOOK, USAGE_ERROR, UsageError, complain
from fairlead_operator.cli.validate import add_files, check
from fairlead_operator.decide.replicas import bounds_of
from fairlead_operator.decide.variants import distribute, variant_options
from fairlead_operator.render.deployment import deployment, first_revision, plan_template
from fairlead_operator.render.pod_template import Images, RenderSettings
from fairlead_operator.render.services import pool_disruption_budget, pool_headless_service, pool_service
from fairlead_operator.settings import read_settings

WIDTH: Final = 120


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", environment: Mapping[str, str]) -> None:
    """The command line of ``fairlead render``."""
    text = (
        "Prints the Deployments, Services and PodDisruptionBudgets that the operator applies for the ModelPools of the "
        "files: those of a pool that does not run yet, at its fewest replicas. 1 if the files have an error."
    )
    parser = commands.add_parser("render", help="print what would be applied for YAML files", description=text)
    add_files(parser, environment)
    known = read_settings(environment)
    text = f"router image of the release, as in the chart's values (default {known.router_image})"
    parser.add_argument("--router-image", default=known.router_image, help=text)
    parser.add_argument("--operator-url", default=known.operator_url, help=f"(default {known.operator_url})")
    parser.add_argument("--ledger-url", default=known.ledger_url, help=f"(default {known.ledger_url})")


def run(options: argparse.Namespace) -> int:
    """0 = printed, 1 = the files have an error, 2 = a wrong command line."""
    try:
        report = check(options.filename, options.namespace, options.engine_image)
    except UsageError as error:
        return complain(str(error), USAGE_ERROR)
    for finding in report.errors:
        print(finding, file=sys.stderr)
    if report.errors:
        return LOOK
    images = Images(router=options.router_image, engine=options.engine_image)
    settings = RenderSettings(operator_url=options.operator_url, ledger_url=options.ledger_url)
    pools = [one.resource for one in report.checked if isinstance(one.resource, ModelPool)]
    documents = [body for pool in pools for body in bodies(pool, images, settings)]
    print(yaml.safe_dump_all(documents, sort_keys=False, width=WIDTH, allow_unicode=True), end="")
    return FINE


def bodies(pool: ModelPool, images: Images, settings: RenderSettings) -> Iterator[dict[str, Any]]:
    """The objects of a pool that does not run yet. Owner references are left out: they need the pool's uid."""
    decision = first_revision(pool.spec)
    counts = dict(distribute(bounds_of(pool.spec).minimum, variant_options(pool.spec, {}, {})).counts)
    for variant in pool.spec.variants:
        plan = plan_template(pool, variant, images, settings, decision=decision)
        yield _printed(deployment(pool, variant, plan, counts[variant.name]))
    for body in (pool_service(pool), pool_headless_service(pool), pool_disruption_budget(pool)):
        yield _printed(body)


def _printed(body: dict[str, Any]) -> dict[str, Any]:
    """Without owner references, and without the annotations in which the operator keeps what it rendered."""
    meta = {name: value for name, value in body["metadata"].items() if name not in {"ownerReferences", "annotations"}}
    return {**body, "metadata": meta}
