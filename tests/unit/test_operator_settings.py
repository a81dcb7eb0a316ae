"""Settings come from the environment, and a value that cannot be used is refused with the ones that can."""

import pytest

from fairlead_operator.settings import read_settings


def test_addresses_follow_the_namespace() -> None:
    settings = read_settings({"FAIRLEAD_NAMESPACE": "llm"})
    assert settings.ledger_url == "http://fairlead-ledger.llm:8080"
    assert settings.operator_url == "http://fairlead-operator.llm:8080"
    assert settings.gateway_url == "http://fairlead-gateway.llm"


def test_platform_namespaces_are_sorted_unique_and_trimmed() -> None:
    assert read_settings({"FAIRLEAD_PLATFORM_NAMESPACES": "b, a,,b"}).platform_namespaces == ("a", "b")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="Admit and Reject exist"):
        read_settings({"FAIRLEAD_UNBUDGETED_NAMESPACES": "Maybe"})


def test_a_listen_address_without_a_port_is_refused() -> None:
    with pytest.raises(ValueError, match="write address:port"):
        read_settings({"FAIRLEAD_LISTEN": "localhost"})
