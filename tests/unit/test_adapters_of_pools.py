"""LoRA adapters from a pool's spec to the routers' configuration, and from their reports to statuses."""

from dataclasses import replace

import pytest

from fairlead_operator.api.v1alpha1 import ModelPool, ModelPoolStatus
from fairlead_operator.config_feed import scoped
from fairlead_operator.decide.models import Callers, resolve_models
from fairlead_operator.decide.signals import Report
from fairlead_operator.render.router_config import PolicyInput, PoolInput, ReleaseInput, compile_config
from fairlead_operator.status.adapters import adapter_status, adapter_trouble
from fairlead_operator.status.routingpolicy import PolicyView, resolved_finding, routingpolicy_status
from fairlead_router.contract import AdapterConfig, AdapterSignals, FallbackConfig, RouterConfig, Signals, WeightedPool
from fairlead_router.policy import build_index
from tests.builders.decisions import NOW, pod
from tests.builders.resources import PolicyBuilder, PoolBuilder, make_policy, make_pool

LEGAL = ("legal", "hf://acme/a")


def pool(*adapters: tuple[str, str]) -> PoolBuilder:
    built = make_pool("chat").engine(maxContextTokens=8192)
    lora = {"adapters": [{"name": name, "uri": uri} for name, uri in adapters]}
    return built.spec(model={**built.body["model"], **({"lora": lora} if adapters else {})})


def asking() -> PolicyBuilder:
    return make_policy("legal").spec(routes=[{"name": "all", "poolRefs": [{"name": "chat", "adapter": "legal"}]}])


def falling_back() -> PolicyBuilder:
    fallback = {"when": ["Unavailable"], "poolRef": {"name": "chat", "adapter": "legal"}}
    return make_policy("legal").spec(routes=[{"name": "all", "poolRefs": [{"name": "chat"}], "fallbacks": [fallback]}])


def compiled(found: PoolBuilder, policy: PolicyBuilder) -> RouterConfig:
    parsed = policy.parsed()
    callers = resolve_models([parsed], {"ai-platform": {}}, ("ai-platform",))[parsed.key]
    config = compile_config([PoolInput(found.parsed())], [PolicyInput(parsed, callers)], [], ReleaseInput()).config
    build_index(config)
    return config


def test_a_pools_adapters_reach_the_routers_with_what_the_engine_loads() -> None:
    found = pool(("b", "pvc://loras/b/v2/"), ("a", "hf://acme/a"), ("c", "s3://bucket/c"), ("d", "oci://registry/d:1"))
    (one,) = compiled(found, make_policy("chat")).pools
    assert one.adapters == (
        AdapterConfig(name="a", path="acme/a"),
        AdapterConfig(name="b", path="/models/loras/b/v2"),
    )


def test_a_policy_that_names_an_adapter_stands_apart_for_routers_that_know_none() -> None:
    config = compiled(pool(LEGAL), asking())
    assert config.policies == ()
    (one,) = config.adapter_policies
    assert one.routes[0].pools == (WeightedPool(pool="ai-platform/chat", adapter="legal"),)
    assert scoped(config, "ai-platform").config.adapter_policies == config.adapter_policies
    assert scoped(config, "support").config.adapter_policies == ()


def test_a_policy_whose_fallback_alone_names_an_adapter_stands_apart_too() -> None:
    config = compiled(pool(LEGAL), falling_back())
    assert config.policies == ()
    found = FallbackConfig(pool="ai-platform/chat", when=("Unavailable",), adapter="legal")
    assert config.adapter_policies[0].routes[0].fallbacks == (found,)


def test_a_policy_without_adapters_stays_where_older_routers_read_it() -> None:
    config = compiled(pool(LEGAL), make_policy("chat"))
    assert (len(config.policies), config.adapter_policies) == (1, ())


@pytest.mark.parametrize("adapters", [(), (("other", "hf://acme/a"),), (("legal", "s3://bucket/a"),)])
def test_an_adapter_that_the_pool_lacks_is_left_out_with_its_route(adapters: tuple[tuple[str, str], ...]) -> None:
    config = compiled(pool(*adapters), asking())
    assert (config.policies, config.adapter_policies) == ((), ())
    assert compiled(pool(*adapters), falling_back()).policies[0].routes[0].fallbacks == ()


def view(found: PoolBuilder, policy: PolicyBuilder, ready: int = 3) -> PolicyView:
    return PolicyView(
        policy=policy.parsed(),
        callers=Callers(("ai-platform",)),
        pools={"chat": PoolInput(found.parsed())},
        ready={"chat": ready},
        namespaces_total=1,
        routers_total=1,
        routers_programmed=1,
        address="http://gateway",
    )


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ((), "and pool chat has no such adapter: spec.model.lora has none."),
        ((("b", "hf://b/b"), ("a", "hf://a/a")), "and pool chat has no such adapter: spec.model.lora has a, b."),
        ((("legal", "s3://b/c"),), "of pool chat, which is not accepted: see ModelPool chat."),
    ],
)
def test_an_adapter_that_cannot_answer_is_named(adapters: tuple[tuple[str, str], ...], words: str) -> None:
    for policy, verb, place in ((asking(), "names", "poolRefs"), (falling_back(), "falls back to", "fallbacks")):
        found = resolved_finding(view(pool(*adapters), policy))
        assert (found.status, found.reason) == ("False", "AdapterNotFound")
        gap = " " if words.startswith("of ") else ", "
        assert found.message == (
            f"Route all {verb} adapter legal{gap}{words} The route goes without it. "
            f"Add it to the pool's spec.model.lora.adapters, or correct {place}."
        )


def test_an_adapter_that_the_pool_has_is_resolved() -> None:
    for policy in (asking(), falling_back()):
        assert resolved_finding(view(pool(LEGAL), policy)).status == "True"


@pytest.mark.parametrize(("loaded", "ready", "shown"), [(2, 3, 2), (3, 2, 2), (0, 3, 0)])
def test_a_routes_ready_replicas_are_those_that_have_its_adapter(loaded: int, ready: int, shown: int) -> None:
    body = pool(LEGAL).obj() | {"status": {"adapters": [{"name": "legal", "readyReplicas": loaded}]}}
    one = view(pool(LEGAL), asking(), ready)
    told = replace(one, pools={"chat": PoolInput(ModelPool.parse(body))})
    assert routingpolicy_status(told, {}, NOW)["routes"][0]["readyReplicas"] == shown


def report(name: str, *adapters: AdapterSignals) -> tuple[str, Report]:
    key = f"ai-platform/{name}"
    signals = Signals(router=key, config_version="", endpoints_version="", adapters=adapters)
    return key, Report(key, NOW, signals)


def test_the_replicas_that_have_an_adapter_are_counted() -> None:
    found = pool(LEGAL, ("medical", "hf://acme/m")).parsed()
    both = (AdapterSignals(name="legal", loaded=True), AdapterSignals(name="medical", loaded=True))
    reports = dict([report("a", *both), report("b", both[0]), report("c", *both), report("d", *both)])
    pods = [pod("a"), pod("b"), pod("c", ready=False), pod("d", deleting=True), pod("e")]
    status = adapter_status(found, pods, reports)
    assert status == [{"name": "legal", "readyReplicas": 2}, {"name": "medical", "readyReplicas": 1}]
    ModelPoolStatus.model_validate({"adapters": status})
    assert adapter_status(pool().parsed(), pods, reports) == []


def test_what_keeps_an_adapter_from_being_loaded_is_told_in_the_engines_words() -> None:
    found = pool(LEGAL, ("medical", "hf://acme/m")).parsed()
    failed = [AdapterSignals(name=name, error=f"404: no {name}.") for name in ("medical", "legal", "gone")]
    reports = dict([report("a"), report("b", *failed)])
    assert adapter_trouble(found, reports, [pod("a"), pod("b")]) == (
        "Adapter legal cannot be loaded on pod b (404: no legal) (1 more adapter)."
    )
    assert adapter_trouble(found, reports, [pod("a")]) == ""
