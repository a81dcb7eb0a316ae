"""What is known of the checkpoints and accelerators of a pool, for the question whether they fit.

A checkpoint's shape is on record for well-known models. Of other ``hf://`` checkpoints config.json is read from the
address in the setting huggingFaceEndpoint, if there is one; nothing is read otherwise. Volumes, buckets and images are
out of the operator's reach: of them only a well-known name tells something, and no more than a hint.
"""

import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import aiohttp

from fairlead_operator.api.v1alpha1 import ModelPool, ModelPoolSpec, Variant
from fairlead_operator.api.v1alpha1.modelpool import ModelSource
from fairlead_operator.decide.accelerator import CPU, Known, candidate, model_on_record, weights_of
from fairlead_operator.decide.engine_table.formats import checkpoint_fault
from fairlead_operator.decide.facts import NodeFact
from fairlead_operator.decide.fit import Candidate
from fairlead_operator.http_body import read_body
from fairlead_operator.kube.api import Object
from fairlead_operator.performance.model_config import model_from_config
from fairlead_operator.performance.seeds import ModelFacts, Unknown
from fairlead_operator.render.deployment import spec_hash
from fairlead_operator.render.revisions import ANNOTATION_SPEC

TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 1024 * 1024
MAX_REDIRECTS: Final = 3
KEPT: Final = 256
AGAIN_S: Final = 600.0
"""After this long a config.json that could not be read, or one without a revision, is asked for again."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?")


@dataclass(frozen=True, slots=True)
class _Answer:
    config: Mapping[str, object] | Unknown
    at_s: float


class Checkpoints:
    """Reads the config.json of checkpoints and keeps what it said. ``endpoint`` is empty: nothing is read."""

    def __init__(self, endpoint: str, now: Callable[[], float] = time.monotonic) -> None:
        self._endpoint = endpoint
        self._now = now
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()

    async def candidates(
        self, pool: ModelPool, deployments: Mapping[str, Object], nodes: Iterable[NodeFact]
    ) -> tuple[Candidate, ...]:
        """The variants to be judged, with what is known of them; ``deployments`` are the live ones by variant.

        Left out are those on CPUs, whose memory is the pod's, and those whose present spec is rolled out already: what
        runs, or ran until it was scaled to zero, is not refused because a later release computes otherwise. Takes at
        most ``TIMEOUT_S`` for each checkpoint that is not known yet, and raises nothing.
        """
        places = tuple(nodes)
        open_questions = [
            one
            for one in pool.spec.variants
            if one.accelerator.resource_name != CPU and not _settled(pool.spec, one, deployments.get(one.name))
        ]
        return tuple([await self._candidate(pool.spec, one, places) for one in open_questions])

    async def _candidate(self, spec: ModelPoolSpec, variant: Variant, nodes: tuple[NodeFact, ...]) -> Candidate:
        known = await self._known(spec.model_of(variant), weights_of(spec, variant))
        return candidate(spec, variant, nodes, known)

    async def _known(self, source: ModelSource, weights: str | None) -> Known:
        """By config.json; where that cannot be read, a well-known name stands in for it."""
        scheme, _, rest = source.uri.partition("://")
        named = model_on_record(source, weights)
        if scheme != "hf" or not self._endpoint:
            return named
        config = await self._config(rest, source.revision)
        if isinstance(config, Unknown):
            return named if isinstance(named.model, ModelFacts) else Known(config)
        fault = checkpoint_fault(weights, _method(config)) if weights is not None else ""
        return Known(model_from_config(config, quantization=weights), fault=fault)

    async def _config(self, repository: str, revision: str | None) -> Mapping[str, object] | Unknown:
        """The config.json, as it was read last or now."""
        key = (repository, revision or "")
        known = self._answers.get(key)
        lasting = known is not None and revision is not None and not isinstance(known.config, Unknown)
        if known is not None and (lasting or self._now() - known.at_s < AGAIN_S):
            self._answers.move_to_end(key)
            return known.config
        config = await read_config(self._endpoint, repository, revision or "main")
        self._answers[key] = _Answer(config, self._now())
        while len(self._answers) > KEPT:
            self._answers.popitem(last=False)
        return config


def _method(config: Mapping[str, object]) -> str | None:
    """The method that the checkpoint is quantised with; ``None`` for one that is not."""
    stated = config.get("quantization_config")
    return str(stated.get("quant_method") or "") or None if isinstance(stated, Mapping) else None


async def read_config(endpoint: str, repository: str, revision: str) -> Mapping[str, object] | Unknown:
    """A checkpoint's config.json, or why there is none; within ``TIMEOUT_S`` and ``MAX_BYTES``."""
    if _REPOSITORY.fullmatch(repository) is None:
        return Unknown(f"{repository[:80]!r} is no name of a repository")
    address = f"{endpoint}/{repository}/resolve/{quote(revision, safe='')}/config.json"
    try:
        body = await _get(address)
        config = json.loads(body)
    except TimeoutError:
        return Unknown(f"{address} did not answer within {TIMEOUT_S:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return Unknown(f"{address} cannot be read: {str(error)[:120] or type(error).__name__}")
    except (ValueError, RecursionError) as error:
        return Unknown(f"{address} is no JSON object: {str(error)[:120]}")
    return config if isinstance(config, dict) else Unknown(f"{address} is no JSON object")


async def _get(address: str) -> bytes:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(address, max_redirects=MAX_REDIRECTS) as answer,
    ):
        if answer.status != 200:  # noqa: PLR2004 HTTP's own number
            raise aiohttp.ClientError(f"it answered {answer.status}")
        return await read_body(answer, MAX_BYTES)


def _settled(spec: ModelPoolSpec, variant: Variant, live: Mapping[str, Any] | None) -> bool:
    """Whether the present spec of the variant was accepted and rolled out before."""
    annotations = {} if live is None else live["metadata"].get("annotations") or {}
    return bool(annotations.get(ANNOTATION_SPEC) == spec_hash(spec, variant))
