"""Rollouts on the fake API server, as on the real one, and what only a fake one can be made to do."""

from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from fairlead_operator.api.v1alpha1 import ModelPool
from fairlead_operator.decide.signals import Report
from fairlead_operator.kube.api import Api
from fairlead_operator.reconcile.pool_facts import Facts
from fairlead_operator.reconcile.rollouts import Rollouts, words_of
from fairlead_operator.render.deployment import TemplatePlan, plan_template
from fairlead_operator.settings import read_settings
from fairlead_router.contract import Signals
from tests.builders.decisions import NOW, pod
from tests.builders.rollouts import ROLLOUTS, World, pool_of
from tests.fakes.api_server import FakeApiServer, Fault


@pytest.mark.parametrize("check", ROLLOUTS, ids=lambda check: check.__name__)
async def test_rollouts_go_on_whoever_leads(check: Callable[[Api, str], Awaitable[None]]) -> None:
    async with FakeApiServer().running() as server, aiohttp.ClientSession() as session:
        await check(Api(session, server.url), "default")


async def _second_revision_fails(api: Api) -> Facts:
    """A pool whose second revision has a pod that crashes."""
    world = await World(api, "default", pool_of("h100")).begin()
    await world.step()
    await world.step(world.member(1))
    world.builder = world.builder.engine(maxSequences=64)
    await world.step(world.member(1))
    return await world._facts((world.member(1), world.broken(2)))


async def test_a_history_that_may_not_be_read_is_said_and_nothing_is_changed() -> None:
    async with FakeApiServer().running() as server, aiohttp.ClientSession() as session:
        api = Api(session, server.url)
        facts = await _second_revision_fails(api)
        server.faults.append(Fault("GET", "replicasets", 403))
        revisions = await Rollouts(api, read_settings({})).decide(facts, {}, accepted=True)
    assert [problem.reason for problem in revisions.problems] == ["Forbidden"]
    assert all(problem.warning for problem in revisions.problems)
    assert revisions.decision.missing == ("h100",)
    assert revisions.decision.steps["h100"].action == "Keep"


async def test_the_history_is_listed_once_for_each_change() -> None:
    async with FakeApiServer().running() as server, aiohttp.ClientSession() as session:
        api = Api(session, server.url)
        facts = await _second_revision_fails(api)
        rollouts, before = Rollouts(api, read_settings({})), server.count("GET", "/replicasets")
        for _ in range(3):
            await rollouts.decide(facts, {}, accepted=True)
        assert server.count("GET", "/replicasets") == before + 1
        rollouts.forget(facts.pool.key)
        await rollouts.decide(facts, {}, accepted=True)
        assert server.count("GET", "/replicasets") == before + 2


async def test_templates_are_rendered_again_only_when_something_that_they_are_made_of_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered: list[str] = []

    def counting(pool: ModelPool, *about: Any, **more: Any) -> TemplatePlan:
        rendered.append(pool.key)
        return plan_template(pool, *about, **more)

    async with FakeApiServer().running() as server, aiohttp.ClientSession() as session:
        facts = await _second_revision_fails(Api(session, server.url))
        rollouts = Rollouts(Api(session, server.url), read_settings({}))
        decision = (await rollouts.decide(facts, {}, accepted=True)).decision
    monkeypatch.setattr("fairlead_operator.reconcile.rollouts.plan_template", counting)
    first = rollouts.plans(facts, decision)
    reread = replace(facts, pool=facts.pool.model_copy(deep=True))
    assert rollouts.plans(reread, decision) == first
    assert len(rendered) == 1
    faster = facts.pool.model_copy(update={"spec": pool_of("h100").engine(maxSequences=32).parsed().spec})
    other = replace(decision, newest=replace(decision.newest, number=decision.newest.number + 1))
    live = {name: deepcopy(body) for name, body in facts.deployments.items()}
    live["h100"]["metadata"]["annotations"]["fairlead.dev/template"] = "{}"
    for number, changed in enumerate(
        [(replace(facts, pool=faster), decision), (facts, other), (replace(facts, deployments=live), other)]
    ):
        rollouts.plans(*changed)
        assert len(rendered) == number + 2
    rollouts.forget(facts.pool.key)
    rollouts.plans(*changed)
    assert len(rendered) == 5


def test_of_an_engine_that_answers_nonsense_its_router_speaks() -> None:
    def report(name: str, trouble: str) -> Report:
        return Report(name, NOW, Signals(router=name, config_version="", endpoints_version="", engine_trouble=trouble))

    crashed = pod("crashed", ready=False, waiting={"reason": "CrashLoopBackOff"}, ended={"exitCode": 2})
    silly = replace(crashed, name="silly")
    pods = [crashed, silly, pod("starts", ready=False), pod("fine"), pod("unheard", ready=False)]
    told = ["it is down", "the warm-up was answered with token 0 alone", "it is down", "it is down"]
    reports = {one.key: report(one.key, text) for one, text in zip(pods, told, strict=False)}
    words = words_of(pods, reports)
    assert set(words) == {"crashed", "silly", "starts"}
    assert words["crashed"].endswith("(exit code 2).")
    assert words["silly"].endswith("(exit code 2). Pod silly: the warm-up was answered with token 0 alone.")
    assert words["starts"] == "Pod starts: it is down."
