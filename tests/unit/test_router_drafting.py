"""What an engine's drafts came to, as Prometheus reads it from the router."""

from prometheus_client.parser import text_string_to_metric_families

from fairlead_router.contract import EngineSignals
from fairlead_router.drafting import WINDOW_S, Drafting, show_drafting
from fairlead_router.telemetry import Telemetry

POOL = "ai-platform/chat-8b"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def told(drafts: int, *kept: int) -> EngineSignals:
    """So many drafts of four tokens, of which so many were kept at each place."""
    return EngineSignals(
        drafts_total=drafts, draft_tokens_total=4 * drafts, accepted_total=sum(kept), accepted_by_position=kept
    )


def shown(drafting: Drafting) -> dict[str, float]:
    telemetry = Telemetry()
    show_drafting(telemetry, drafting, POOL)
    text = b"".join(telemetry.render()).decode()
    return {
        f"{sample.name.removeprefix('fairlead_')}{sample.labels.get('position', '')}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "draft" in sample.name and sample.labels["pool"] == POOL
    }


def test_the_counters_are_the_engines_and_the_gauges_are_of_the_last_minutes() -> None:
    clock = Clock()
    drafting = Drafting(clock)
    drafting.note(told(1000, 900, 0, 0, 0))
    clock.now += 60
    drafting.note(told(1100, 980, 60, 40, 20))
    assert shown(drafting) == {
        "drafts_total": 1100,
        "draft_tokens_total": 4400,
        "draft_accepted_tokens_total1": 980,
        "draft_accepted_tokens_total2": 60,
        "draft_accepted_tokens_total3": 40,
        "draft_accepted_tokens_total4": 20,
        "draft_acceptance_ratio": 200 / 400,
        "draft_accepted_length": 3.0,
    }


def test_an_engine_that_does_not_speculate_shows_nothing() -> None:
    drafting = Drafting()
    drafting.note(EngineSignals(running=3))
    assert shown(drafting) == {}


def test_what_is_older_than_the_window_does_not_count_and_a_silent_engine_has_no_ratio() -> None:
    clock = Clock()
    drafting = Drafting(clock)
    drafting.note(told(100, 100))
    clock.now += WINDOW_S - 1
    drafting.note(told(200, 100))
    assert shown(drafting)["draft_accepted_length"] == 1.0
    clock.now += WINDOW_S - 1
    drafting.note(told(300, 200))
    assert shown(drafting)["draft_accepted_length"] == 2.0
    clock.now += 2 * WINDOW_S
    assert set(shown(drafting)) == {"drafts_total", "draft_tokens_total", "draft_accepted_tokens_total1"}


def test_an_engine_that_began_anew_is_not_compared_with_the_one_before() -> None:
    drafting = Drafting(Clock())
    drafting.note(told(1000, 900))
    drafting.note(told(10, 0))
    drafting.note(told(20, 10))
    assert shown(drafting)["draft_accepted_length"] == 2.0


def test_an_engine_that_cannot_be_read_shows_nothing_until_it_can() -> None:
    drafting = Drafting(Clock())
    drafting.note(told(1000, 900))
    drafting.note(None)
    assert shown(drafting) == {}
    drafting.note(told(1100, 1000))
    assert "draft_accepted_length" not in shown(drafting)


def test_marks_are_bounded_however_often_the_engine_is_read() -> None:
    clock = Clock()
    drafting = Drafting(clock)
    for drafts in range(10_000):
        clock.now += 1
        drafting.note(told(drafts, drafts))
    assert len(drafting._marks) < 15
    assert shown(drafting)["draft_accepted_length"] == 2.0
