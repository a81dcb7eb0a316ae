"""Which template each variant should have: one variant at a time, what failed goes back, what was undone stays."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_operator.decide.facts import PodFact, Trouble
from fairlead_operator.decide.rollout import (
    Decision,
    Failure,
    Inputs,
    Kept,
    Live,
    Newest,
    Pin,
    Progress,
    Step,
    decide,
    pool_hash,
    progress_of,
)
from tests.builders.decisions import NOW, pod

OLD, NEW = "0ld", "new"
CRASH = Trouble("CrashLoop", "engine", "exit code 1: ValueError: no")


def live(revision: int = 1, spec: str = OLD, wanted: int = 2, **fields: Any) -> Live:
    """A Deployment whose pods all are of its template and have served, as the only variant of its pool."""
    progress = fields.pop("progress", Progress("h100", wanted, wanted, wanted))
    usual: dict[str, Any] = {
        "label": str(revision),
        "served": revision,
        "newest": Newest(revision, pool_hash({"h100": spec})),
    }
    return Live(revision, spec, progress=progress, **(usual | fields))


def unproven(revision: int = 2, spec: str = NEW, **fields: Any) -> Live:
    """A Deployment that was given its template a moment ago: one of three pods is of it, and none was ready."""
    usual: dict[str, Any] = {"served": revision - 1, "progress": Progress("h100", 2, 3, 1)}
    return live(revision, spec, **(usual | fields))


def member(revision: int, name: str = "x", *, variant: str = "h100", **fields: Any) -> PodFact:
    """A pod of a revision; ready unless it says otherwise."""
    return replace(pod(f"{name}-{revision}", variant=variant), revision=str(revision), **fields)


def broken(revision: int, trouble: Trouble | None = CRASH, **fields: Any) -> PodFact:
    return member(revision, ready=False, trouble=trouble, **({"restarts": 3} | fields))


def kept(revision: int, variant: str = "h100", *, served: bool = True) -> Kept:
    return Kept(variant, revision, f"spec-{revision}", served, {"spec": {"revision": revision}})


def of_one(present: Live, *pods: PodFact, spec: str = NEW, **fields: Any) -> Inputs:
    """A pool with the variant h100 alone; its spec asks for NEW."""
    return Inputs(wanted={"h100": spec}, live={"h100": present}, pods=pods, now_ms=NOW, startup="20m", **fields)


def of_two(h100: Live, l40s: Live, *pods: PodFact, **fields: Any) -> Inputs:
    """A pool with two variants whose spec asks for NEW of both."""
    newest = Newest(1, pool_hash({"h100": OLD, "l40s": OLD}))
    both = {"h100": h100, "l40s": l40s}
    both = {name: replace(one, newest=newest) if one.newest.number < 2 else one for name, one in both.items()}
    return Inputs(wanted={"h100": NEW, "l40s": NEW}, live=both, pods=pods, now_ms=NOW, **fields)


def step(decision: Decision, variant: str = "h100") -> tuple[str, int]:
    found = decision.steps[variant]
    return found.action, found.revision


def second(name: str = "l40s") -> Newest:
    """Revision 2 of a pool with two variants."""
    return Newest(2, pool_hash({"h100": NEW, name: NEW}))


# --- revisions ---


def test_a_new_pool_renders_every_variant_at_once_as_its_first_revision() -> None:
    made = decide(Inputs(wanted={"h100": NEW, "l40s": NEW}, live={}, pods=(), now_ms=NOW))
    assert made.newest == Newest(1, pool_hash({"l40s": NEW, "h100": NEW}))
    assert [step(made, name) for name in ("h100", "l40s")] == [("Render", 1), ("Render", 1)]


def test_a_spec_that_asks_for_the_same_pods_keeps_their_template() -> None:
    made = decide(of_one(live(7), spec=OLD))
    assert (made.newest.number, step(made)) == (7, ("Keep", 7))
    assert not made.looks_back


def test_a_changed_spec_is_the_next_revision() -> None:
    made = decide(of_one(live(7), member(7)))
    assert (made.newest, step(made)) == (Newest(8, pool_hash({"h100": NEW})), ("Render", 8))


def test_a_spec_that_is_not_accepted_leaves_every_template_as_it_is() -> None:
    made = decide(of_one(live(7), member(7), accepted=False))
    assert (made.newest.number, made.newest.hash, step(made)) == (7, pool_hash({"h100": OLD}), ("Keep", 7))


def test_a_deployment_of_an_earlier_release_runs_the_first_revision_and_is_not_rolled() -> None:
    earlier = Live(1, OLD, progress=Progress("h100", 2, 2, 2))
    made = decide(of_one(earlier, replace(member(1), revision=""), spec=OLD))
    assert (made.newest, made.steps["h100"]) == (Newest(1, pool_hash({"h100": OLD})), Step("Keep", 1, served=1))


def test_a_variant_that_is_added_is_rendered_and_the_others_keep_theirs() -> None:
    given = of_one(live(3, spec=NEW), member(3))
    made = decide(replace(given, wanted={"h100": NEW, "l40s": NEW}))
    assert (step(made, "h100"), step(made, "l40s")) == (("Keep", 3), ("Render", 4))


def test_a_spec_that_was_taken_back_needs_no_number() -> None:
    failed = Failure(2, pool_hash({"h100": NEW}), "h100", "CrashLoop", "it died")
    present = live(1, newest=Newest(2, failed.hash), failure=failed)
    made = decide(of_one(present, member(1), spec=OLD))
    assert (made.newest.number, step(made), made.failure) == (2, ("Keep", 1), None)


# --- one variant at a time ---


def test_two_variants_take_a_new_revision_one_after_the_other() -> None:
    given = of_two(live(), live(), member(1), member(1, variant="l40s"))
    made = decide(given)
    assert (step(made, "h100"), step(made, "l40s")) == (("Render", 2), ("Keep", 1))
    assert made.steps["l40s"].waits_for == "h100"


@pytest.mark.parametrize(
    ("progress", "pods"),
    [
        (Progress("h100", 2, 3, 1), [member(2)]),
        (Progress("h100", 2, 2, 2, observed=False), [member(2)]),
        (Progress("h100", 2, 2, 2), [member(2), member(2, "y", ready=False)]),
        (Progress("h100", 2, 2, 2), []),
    ],
    ids=["old pods are left", "the controller has not looked", "a pod starts", "no pod was ready"],
)
def test_the_second_variant_waits_until_the_first_is_through(progress: Progress, pods: list[PodFact]) -> None:
    first = unproven(newest=second(), progress=progress)
    made = decide(of_two(first, live(), *pods, member(1, variant="l40s")))
    assert made.steps["l40s"] == Step("Keep", 1, served=1, waits_for="h100")


@pytest.mark.parametrize(
    ("first", "pods"),
    [
        (unproven(newest=second(), progress=Progress("h100", 2, 2, 2)), [member(2)]),
        (unproven(newest=second(), progress=Progress("h100", 0, 0, 0)), []),
        (live(2, NEW, newest=second()), [member(2), broken(2, restarts=9)]),
        (
            unproven(newest=second(), served=0, progress=Progress("h100", 2, 2, 2, overdue=True)),
            [member(2, ready=False)],
        ),
    ],
    ids=["all serve", "it is at zero", "one pod died later", "it never started and has nothing to go back to"],
)
def test_the_second_variant_follows(first: Live, pods: list[PodFact]) -> None:
    made = decide(of_two(first, live(), *pods, member(1, variant="l40s")))
    assert step(made, "l40s") == ("Render", 2)


# --- what fails goes back ---


def test_a_crash_loop_goes_back_to_what_served_and_says_the_engines_words() -> None:
    words = {"x-2": "Pod x-2 container engine ended 3 times (exit code 1: ValueError: no)."}
    given = of_one(unproven(), member(1), broken(2), words=words)
    blind = decide(given)
    assert blind.looks_back
    made = decide(replace(given, kept=(kept(1),)))
    assert made.failure == Failure(2, pool_hash({"h100": NEW}), "h100", "CrashLoop", words["x-2"])
    assert made.steps["h100"] == Step("Restore", 1, served=1, kept=kept(1))
    assert not made.looks_back


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ([broken(2, restarts=2)], None),
        ([broken(2, Trouble("Exited", "engine", "exit code 0"))], "Exited"),
        ([broken(2, Trouble("ImagePull", "engine", "image x"), restarts=0)], "ImagePull"),
        ([broken(2, Trouble("Config", "engine", "no Secret"), restarts=0)], "Config"),
        ([broken(2, Trouble("ImagePull", "engine", "image x"), scheduled_ms=NOW - 119_000)], None),
        ([broken(1)], None),
        ([broken(2, terminating=True)], None),
        ([member(2), broken(2)], None),
        ([broken(2, variant="l40s")], None),
    ],
    ids=[
        "twice",
        "with code 0",
        "no image",
        "no Secret",
        "not long yet",
        "old pod",
        "it goes",
        "one serves",
        "another's",
    ],
)
def test_what_counts_as_a_failure(pods: list[PodFact], reason: str | None) -> None:
    made = decide(of_one(unproven(), member(1, "old"), *pods, kept=(kept(1),)))
    assert (made.failure.reason if made.failure else None) == reason


def test_a_revision_that_takes_longer_than_the_startup_timeout_is_given_up() -> None:
    late = unproven(progress=Progress("h100", 2, 3, 1, overdue=True))
    made = decide(of_one(late, member(1), member(2, ready=False), kept=(kept(1),)))
    assert made.failure is not None
    assert made.failure.reason == "StartupTimedOut"
    assert made.failure.message == "No pod was ready within startupTimeout (20m). No pod says why."
    unseen = replace(late, progress=replace(late.progress, observed=False))
    assert decide(of_one(unseen, member(1), member(2, ready=False))).failure is None


@pytest.mark.parametrize(("may_be_missing", "existing", "fails"), [(0, 3, False), (1, 3, True), (1, 1, False)])
def test_a_pod_without_a_node_is_the_templates_fault_only_if_an_old_one_made_room(
    may_be_missing: int, existing: int, fails: bool
) -> None:
    late = unproven(progress=Progress("h100", 2, existing, 1, overdue=True))
    pending = broken(2, Trouble("Pending", "", "0/3 nodes are available"), restarts=0, node="")
    made = decide(of_one(late, member(1), pending, may_be_missing=may_be_missing, kept=(kept(1),)))
    assert (made.failure is not None) is fails


def test_a_pool_that_never_served_keeps_trying() -> None:
    first = unproven(1, served=0, progress=Progress("h100", 2, 2, 2, overdue=True))
    made = decide(of_one(first, broken(1)))
    assert (made.failure, step(made)) == (None, ("Keep", 1))


def test_a_revision_that_was_given_up_is_not_tried_again_until_the_spec_changes() -> None:
    failed = Failure(2, pool_hash({"h100": NEW}), "h100", "CrashLoop", "it died")
    back = live(1, newest=Newest(2, failed.hash), failure=failed)
    for _ in range(3):
        made = decide(of_one(back, member(1)))
        assert (made.failure, step(made), made.looks_back) == (failed, ("Keep", 1), False)
    other = decide(of_one(back, member(1), spec="other"))
    assert (other.failure, step(other)) == (None, ("Render", 3))


def test_a_revision_that_serves_after_all_stays() -> None:
    failed = Failure(2, pool_hash({"h100": NEW}), "h100", "CrashLoop", "it died")
    made = decide(of_one(unproven(failure=failed), member(2), kept=(kept(1),)))
    assert (made.failure, step(made)) == (None, ("Keep", 2))


def test_all_variants_go_back_the_one_that_failed_first() -> None:
    through = live(2, NEW, newest=second())
    fails = unproven(newest=second(), progress=Progress("l40s", 2, 3, 1))
    history = (kept(1), kept(1, "l40s"))
    pods = (member(2), member(1, variant="l40s"), broken(2, variant="l40s"))
    made = decide(of_two(through, fails, *pods, kept=history))
    assert (step(made, "l40s"), step(made, "h100")) == (("Restore", 1), ("Keep", 2))
    assert made.steps["h100"].waits_for == "l40s"
    back = live(1, newest=second(), failure=made.failure)
    later = decide(of_two(through, back, member(2), member(1, variant="l40s"), kept=history))
    assert (step(later, "l40s"), step(later, "h100")) == (("Keep", 1), ("Restore", 1))


def test_what_has_not_begun_does_not_begin_after_a_failure() -> None:
    made = decide(of_two(unproven(newest=second()), live(), broken(2), member(1), kept=(kept(1),)))
    assert (step(made, "h100"), step(made, "l40s")) == (("Restore", 1), ("Keep", 1))


def test_only_revisions_that_served_are_gone_back_to() -> None:
    history = (kept(1), kept(2), kept(3, served=False), kept(9, "l40s"))
    made = decide(of_one(unproven(4, served=2), broken(4), kept=history))
    assert step(made) == ("Restore", 2)


def test_a_variant_without_an_earlier_template_is_named_and_left() -> None:
    made = decide(of_one(unproven(), broken(2), kept=()))
    assert (made.missing, step(made)) == (("h100",), ("Keep", 2))
    assert made.failure is not None


# --- undo ---


def test_an_undo_goes_back_to_the_newest_template_up_to_its_revision() -> None:
    given = of_one(live(5, NEW), member(5), pin=Pin(3, 5))
    assert decide(given).looks_back
    made = decide(replace(given, kept=(kept(1), kept(2, served=False), kept(4))))
    assert (made.pin, step(made), made.failure) == (Pin(3, 5), ("Restore", 2), None)


def test_an_undo_that_is_done_changes_nothing_more() -> None:
    done = live(2, "spec-2", newest=Newest(5, pool_hash({"h100": NEW})))
    made = decide(of_one(done, member(2), pin=Pin(3, 5), kept=(kept(1), kept(2), kept(5))))
    assert (made.pin, step(made)) == (Pin(3, 5), ("Keep", 2))


@pytest.mark.parametrize("pin", [Pin(3, 4), Pin(5, 5), Pin(6, 5), Pin(0, 5)])
def test_an_undo_of_another_revision_than_the_newest_holds_no_longer(pin: Pin) -> None:
    made = decide(of_one(live(5, NEW), member(5), pin=pin, kept=(kept(1), kept(3))))
    assert (made.pin, step(made)) == (None, ("Keep", 5))


def test_the_next_change_of_the_spec_ends_an_undo() -> None:
    done = live(3, "spec-3", newest=Newest(5, pool_hash({"h100": OLD})))
    made = decide(of_one(done, member(3), pin=Pin(3, 5), kept=(kept(3),)))
    assert (made.pin, step(made)) == (None, ("Render", 6))


def test_an_undo_to_what_is_no_longer_kept_says_so() -> None:
    made = decide(of_one(live(5, NEW), member(5), pin=Pin(3, 5), kept=(kept(4),)))
    assert (made.missing, step(made)) == (("h100",), ("Keep", 5))


# --- whatever happens ---

REVISIONS = st.integers(1, 4)
TROUBLES = st.sampled_from([None, CRASH, Trouble("ImagePull", "engine", "x"), Trouble("Pending", "", "no node")])
PODS = st.builds(
    lambda revision, variant, ready, trouble, node: replace(
        member(revision, variant=variant), ready=ready, trouble=None if ready else trouble, node=node, restarts=5
    ),
    REVISIONS, st.sampled_from(["h100", "l40s"]), st.booleans(), TROUBLES, st.sampled_from(["", "gpu-1"]),
)  # fmt: skip
PROGRESS = st.builds(
    Progress, st.just("h100"), st.integers(0, 3), st.integers(0, 4), st.integers(0, 4), st.booleans(), st.booleans()
)
LIVES = st.builds(
    lambda revision, spec, served, number, progress: Live(
        revision, spec, str(revision), served, Newest(max(revision, number), pool_hash({"h100": NEW, "l40s": NEW})),
        None, progress,
    ),
    REVISIONS, st.sampled_from([OLD, NEW]), st.integers(0, 4), st.integers(1, 4), PROGRESS,
)  # fmt: skip
HISTORY = st.lists(
    st.builds(lambda r, v, s: kept(r, v, served=s), REVISIONS, st.sampled_from(["h100", "l40s"]), st.booleans())
)


@settings(max_examples=400)
@given(
    lives=st.dictionaries(st.sampled_from(["h100", "l40s"]), LIVES),
    pods=st.lists(PODS, max_size=5),
    history=st.none() | HISTORY,
    pin=st.none() | st.builds(Pin, REVISIONS, REVISIONS),
    accepted=st.booleans(),
)
def test_never_do_two_variants_begin_to_replace_pods_and_nothing_unproven_is_gone_back_to(
    lives: Mapping[str, Live], pods: list[PodFact], history: list[Kept] | None, pin: Pin | None, accepted: bool
) -> None:
    inputs = Inputs(
        wanted={"h100": NEW, "l40s": NEW}, live=lives, pods=pods, now_ms=NOW, accepted=accepted, pin=pin, kept=history
    )
    made = decide(inputs)
    begun = [name for name, one in made.steps.items() if one.action != "Keep" and name in lives]
    assert len(begun) <= 1
    assert not (begun and not accepted)
    assert made.newest.number >= max((one.revision for one in lives.values()), default=0)
    for name in begun:
        chosen = made.steps[name]
        if chosen.action == "Restore":
            assert chosen.kept is not None
            assert chosen.revision == chosen.kept.revision < made.newest.number
            assert made.pin is not None or chosen.kept.served or chosen.revision == lives[name].served
    for name, one in lives.items():
        if accepted and made.failure is None and made.pin is None and one.spec_hash == NEW:
            assert made.steps[name].action == "Keep", "what runs as the spec says is never replaced"


def test_how_far_a_deployment_is_is_read_from_its_status() -> None:
    status = {
        "observedGeneration": 3, "replicas": 4, "updatedReplicas": 1,
        "conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}],
    }  # fmt: skip
    meta = {"labels": {"fairlead.dev/variant": "h100"}, "generation": 4}
    found = progress_of({"metadata": meta, "spec": {"replicas": 3}, "status": status})
    assert found == Progress("h100", 3, 4, 1, observed=False, overdue=True)
    assert found.running
    assert progress_of({}) == Progress()
