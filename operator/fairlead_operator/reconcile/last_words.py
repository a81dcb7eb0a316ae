"""Why engines ended, where their pods' status does not tell.

A status keeps 2 KiB of a container's log. vLLM's engine core says what went wrong, then its parent adds a traceback of
6 KiB that only points to it: the cause is read from the log, once for each end of an engine.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from fairlead_operator.decide.facts import ENGINE, PodFact, explained
from fairlead_operator.errors import ApiError
from fairlead_operator.kube.api import Api

LINES: Final = 400
PATIENCE_S: Final = 3.0
REMEMBERED: Final = 256
"""Engines' ends whose logs were read, over all pools."""


class LastWords:
    """Reads what crashed engines said; of a log that cannot be read, the status' words stay."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._logs: OrderedDict[tuple[str, int], str] = OrderedDict()

    async def heard(self, pods: Iterable[PodFact]) -> tuple[PodFact, ...]:
        """The pods, those whose words were vague with the cause from their log. At most one log is read at a time."""
        return tuple([await self._heard(pod) for pod in pods])

    async def _heard(self, pod: PodFact) -> PodFact:
        trouble = pod.trouble
        if trouble is None or not trouble.vague or trouble.container != ENGINE:
            return pod
        key = (pod.uid, pod.restarts)
        if key not in self._logs:
            self._logs[key] = await self._read(pod)
            while len(self._logs) > REMEMBERED:
                self._logs.popitem(last=False)
        return explained(pod, self._logs[key])

    async def _read(self, pod: PodFact) -> str:
        try:
            return await self._api.log(pod.namespace, pod.name, ENGINE, lines=LINES, seconds=PATIENCE_S)
        except ApiError:
            return ""
