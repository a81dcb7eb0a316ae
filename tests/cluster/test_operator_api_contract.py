"""What the operator relies on in an API server, held against the real one; the fake one passes the same checks."""

from collections.abc import Awaitable, Callable

import pytest

from fairlead_operator.kube.api import Api
from fairlead_operator.kube.session import login, open_session
from tests.builders.api_contract import CONTRACT
from tests.builders.operator import ROOT
from tests.builders.rollouts import ROLLOUTS
from tests.cluster_tools import Cluster

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_the_real_server_keeps_the_contract(
    control_plane: Cluster, namespace: str, check: Callable[[Api, str], Awaitable[None]]
) -> None:
    who = await login(str(control_plane.kubeconfig))
    async with open_session(who) as session:
        await check(Api(session, who.server), namespace)


@pytest.mark.parametrize("check", ROLLOUTS, ids=lambda check: check.__name__)
async def test_rollouts_go_on_whoever_leads(
    control_plane: Cluster, namespace: str, check: Callable[[Api, str], Awaitable[None]]
) -> None:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/modelpools.fairlead.dev", "--timeout=30s")
    who = await login(str(control_plane.kubeconfig))
    async with open_session(who) as session:
        await check(Api(session, who.server), namespace)
