"""What docs/reference/mistakes.md says of ``kubectl apply`` is what a real API server says."""

import json

import pytest

from fairlead_operator.api.v1alpha1 import KINDS
from hack import crds
from tests.builders.mistakes import APPLIED, MISTAKES, NAMESPACE, Mistake
from tests.cluster_tools import Cluster
from tests.golden_files import assert_golden

pytestmark = pytest.mark.cluster


def applied(plane: Cluster, one: Mistake, namespace: str) -> str:
    """What ``kubectl apply -f`` prints; nothing is kept."""
    text = one.text.replace(f"namespace: {NAMESPACE}\n", f"namespace: {namespace}\n")
    answer = plane.kubectl("apply", "--dry-run=server", "-f", "-", input=text, check=False)
    said = (answer.stdout + answer.stderr).replace(namespace, NAMESPACE).replace('"STDIN"', '"mistake.yaml"')
    return said.replace(" (server dry run)", "")


def test_the_page_says_what_the_server_says(control_plane: Cluster, namespace: str) -> None:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(crds.ROOT / "crds"))
    names = [f"crd/{kind.crd_name}" for kind in KINDS]
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    said = {one.title: applied(control_plane, one, namespace) for one in MISTAKES}
    assert_golden(APPLIED, json.dumps(said, indent=2) + "\n")
