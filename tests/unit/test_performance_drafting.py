"""What drafting a token takes, in steps of the model."""

import pytest

from fairlead_operator.performance.drafting import draft_cost
from fairlead_operator.performance.model_config import model_from_name
from fairlead_operator.performance.seeds import HardwareFacts, ModelFacts, Unknown, hardware_named


def model(name: str) -> ModelFacts:
    found = model_from_name(name)
    assert isinstance(found, ModelFacts)
    return found


def h100() -> HardwareFacts:
    found = hardware_named("H100")
    assert isinstance(found, HardwareFacts)
    return found


LARGE = model("meta-llama/Llama-3.3-70B-Instruct")


def cost(method: str, draft: ModelFacts | Unknown | None = None, accelerators: int = 4) -> float:
    found = draft_cost(method, LARGE, draft, h100(), accelerators)
    assert isinstance(found, float)
    return found


def test_ngrams_cost_nothing() -> None:
    assert cost("ngram") == 0


def test_a_draft_model_costs_about_its_share_of_the_weights_and_a_head_about_a_layer() -> None:
    small = cost("draft_model", model("meta-llama/Llama-3.2-1B-Instruct"))
    assert 0.03 < small < cost("draft_model", model("meta-llama/Llama-3.1-8B-Instruct")) < 0.6
    assert cost("eagle3") == cost("mtp")
    assert 1 / 80 < cost("mtp") < small


def test_a_model_that_drafts_for_itself_costs_a_step_but_for_the_host() -> None:
    assert 0.85 < cost("draft_model", LARGE) < 1


@pytest.mark.parametrize("draft", [None, Unknown("No name says it.")])
def test_a_draft_model_that_is_not_known_leaves_the_cost_unknown(draft: Unknown | None) -> None:
    assert isinstance(draft_cost("draft_model", LARGE, draft, h100(), 4), Unknown)
    assert isinstance(draft_cost("mtp", LARGE, None, h100(), 0), Unknown)
