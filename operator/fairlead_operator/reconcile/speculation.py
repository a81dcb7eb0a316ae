"""What is known of a pool's drafts, for the operator's metrics."""

from fairlead_operator.api.v1alpha1 import ModelPool, Variant
from fairlead_operator.decide.replicas import sequences_of
from fairlead_operator.decide.speculation import Judgement, Setting, judge
from fairlead_operator.performance.fit import fitted
from fairlead_operator.reconcile.autoscaler import PoolLaw, Scene
from fairlead_operator.units import NANO_PER_USD


def judgements_of(law: PoolLaw, scene: Scene) -> dict[str, Judgement]:
    """By variant, of those that draft."""
    prices = {option.name: option.price for option in scene.options}
    return {
        variant.name: found
        for variant in scene.pool.spec.variants
        if (found := _judged(law, scene.pool, variant, prices.get(variant.name))) is not None
    }


def _judged(law: PoolLaw, pool: ModelPool, variant: Variant, price: int | None) -> Judgement | None:
    drafts, known = pool.spec.engine_of(variant).speculative_decoding, law.engines.get(variant.name)
    if drafts is None or known is None:
        return None
    setting = Setting(drafts.method, drafts.tokens, drafts.max_batch_size or 0, sequences_of(pool.spec, variant))
    dollars = None if price is None else price / NANO_PER_USD
    return judge(known.counted, setting, fitted(known.memory).step, known.cost, dollars)
