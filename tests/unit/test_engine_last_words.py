"""Why engines ended, on what vLLM 0.32.0 (CPU build) really wrote: tests/golden/engine_errors, paths made short."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.last_words import names_cause, telling_line
from fairlead_operator.kube.api import Api
from fairlead_operator.reconcile.last_words import REMEMBERED, LastWords
from fairlead_operator.status.pods import pod_text
from tests.builders.decisions import pod

GOLDEN = Path(__file__).parents[1] / "golden" / "engine_errors"
NO_CACHE = "ValueError: To serve at least one request with the model's max seq len (1024), (0.0 GiB KV cache is needed"
WEIGHTS = "safetensors._safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata"


def kept(log: str) -> str:
    """What of a log the kubelet keeps in a pod's status: 80 lines, and of those 2 KiB."""
    return "\n".join(log.splitlines()[-80:])[-2048:]


def read(name: str) -> str:
    return (GOLDEN / f"{name}.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown-argument", "main.py: error: unrecognized arguments: --no-such-flag"),
        (
            "no-folder",
            (
                "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or "
                "'namespace/repo_name': '/models/models/nothing'"
            ),
        ),
        (
            "offline-hub",
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder",
        ),
        (
            "no-chat-template",
            "vllm.exceptions.VLLMValidationError: The supplied chat template string (/nowhere/template.jinja)",
        ),
        ("broken-config", "OSError: It looks like the config file at '/models/models/badjson/config.json'"),
        ("context-too-long", "ValidationError: ModelConfig: User-specified max_model_len (1000000) is greater than"),
        ("wrong-quantization", "ValidationError: VllmConfig: Cannot find the config file for awq"),
        (
            "unknown-architecture",
            "ValidationError: ModelConfig: The checkpoint you are trying to load has model type `nosuch`",
        ),
    ],
)
def test_what_a_status_keeps_of_an_engines_log_names_the_cause(name: str, words: str) -> None:
    line = telling_line(kept(read(name)))
    assert line.startswith(words)
    assert names_cause(line)


@pytest.mark.parametrize(("name", "words"), [("cache-too-small", NO_CACHE), ("truncated-weights", WEIGHTS)])
def test_what_an_engine_core_ended_by_is_only_in_its_log(name: str, words: str) -> None:
    log = read(name)
    assert not names_cause(telling_line(kept(log)))
    assert telling_line(log).startswith(words)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("Exception: no\n", "Exception: no"),
        (
            "x.ValidationError: 2 validation errors for CacheConfig\nblock_size\n  Input should be 8 [type=literal]\n",
            "ValidationError: CacheConfig.block_size: Input should be 8",
        ),
        ("x.ValidationError: 1 validation error for A\n", "x.ValidationError: 1 validation error for A"),
        (
            "Exception: WorkerProc initialization failed. See stack trace for root cause.\nRuntimeError: x\nlast\n",
            "RuntimeError: x",
        ),
    ],
)
def test_of_other_endings_the_line_that_names_a_cause_is_taken(log: str, words: str) -> None:
    assert telling_line(log) == words


# --- reading the log ---


class Kubelet:
    """Answers for the logs of containers that ended."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.log = read("truncated-weights")
        self.status = 200

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        return web.Response(text=self.log, status=self.status)


@pytest.fixture
async def kubelet() -> Kubelet:
    return Kubelet()


@pytest.fixture
async def words(kubelet: Kubelet) -> AsyncIterator[LastWords]:
    app = web.Application()
    app.router.add_get("/api/v1/namespaces/{namespace}/pods/{name}/log", kubelet.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        yield LastWords(Api(session, f"http://127.0.0.1:{runner.addresses[0][1]}"))
    await runner.cleanup()


def crashed(
    name: str = "a", said: str = "RuntimeError: Engine core initialization failed.", **ended: object
) -> PodFact:
    last = {"exitCode": 1, "message": said, **ended}
    return pod(name, ready=False, waiting={"reason": "CrashLoopBackOff"}, ended=last)


async def test_the_cause_is_read_from_the_log_once_for_each_end(words: LastWords, kubelet: Kubelet) -> None:
    (found,) = await words.heard([crashed()])
    assert pod_text(found).startswith(f"Pod a container engine ended 3 times (exit code 1: {WEIGHTS}")
    assert await words.heard([crashed()]) == (found,)
    assert kubelet.asked == [
        "/api/v1/namespaces/ai-platform/pods/a/log?container=engine&previous=true&tailLines=400&limitBytes=262144"
    ]


@pytest.mark.parametrize(
    "fine", [pod("a"), crashed(said="OSError: no"), crashed(said="", exitCode=137, reason="OOMKilled")]
)
async def test_words_that_say_enough_are_left(words: LastWords, kubelet: Kubelet, fine: PodFact) -> None:
    assert await words.heard([fine]) == (fine,)
    assert kubelet.asked == []


@pytest.mark.parametrize(("status", "log"), [(403, "no"), (400, "no"), (200, "nothing of use\n"), (200, "")])
async def test_of_a_log_that_does_not_help_the_status_words_stay(
    words: LastWords, kubelet: Kubelet, status: int, log: str
) -> None:
    kubelet.status, kubelet.log = status, log
    assert await words.heard([crashed()]) == (crashed(),)


async def test_what_is_remembered_is_bounded(words: LastWords, kubelet: Kubelet) -> None:
    await words.heard([crashed(f"p{number}") for number in range(REMEMBERED + 1)])
    assert len(words._logs) == REMEMBERED
    assert len(kubelet.asked) == REMEMBERED + 1
