"""What drafting one token ahead of a model takes, in steps of the model."""

from dataclasses import replace

from fairlead_operator.performance.seeds import FITTED, HardwareFacts, ModelFacts, Seed, Unknown, engine_of

OWN_LAYER = frozenset({"eagle3", "mtp"})
"""Methods whose drafter is about one layer more of the model, with its output layer."""
_NO_HOST = replace(FITTED, step=0.0)
"""A draft is made within a step of the engine, which the host has prepared already."""


def draft_cost(
    method: str, model: ModelFacts, draft: ModelFacts | Unknown | None, hardware: HardwareFacts, accelerators: int
) -> float | Unknown:
    """Seconds of one drafted token over those of a step of the model, with few sequences.

    ``method`` is vLLM's word. Finding n-grams takes the host no time that counts. ``draft`` is wanted for draft_model.
    """
    if method == "ngram":
        return 0.0
    drafter = _one_layer(model) if method in OWN_LAYER else draft
    if drafter is None or isinstance(drafter, Unknown):
        return drafter or Unknown("The draft model is not known.")
    own = engine_of(drafter, hardware, accelerators=accelerators, kv_tokens=1, constants=_NO_HOST)
    whole = engine_of(model, hardware, accelerators=accelerators, kv_tokens=1)
    if not (isinstance(own, Seed) and isinstance(whole, Seed)):
        return Unknown("A replica needs one accelerator or more.")
    return own.engine.step.base / whole.engine.step.base


def _one_layer(model: ModelFacts) -> ModelFacts:
    tables = model.embedding * (1 if model.tied else 2)
    return replace(
        model,
        layers=1,
        parameters=tables + max(0, model.parameters - tables) // model.layers,
        active_parameters=tables + max(0, model.active_parameters - tables) // model.layers,
    )
