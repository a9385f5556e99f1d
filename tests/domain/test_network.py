"""Which server keeps the parity."""

from __future__ import annotations

from domain import network
from tests.domain.given import given, held

CHOSEN = network.ParityDesignated(server_id="RAIDA1", automatic=False)
FOUND = network.ParityDesignated(server_id="RAIDA24", automatic=True)


def test_somebody_chooses() -> None:
    given(network).when(network.Designate("RAIDA1")).then(CHOSEN)
    given(network, CHOSEN).when(network.Designate("RAIDA1")).then()
    given(network, FOUND).when(network.Designate("RAIDA1")).then(CHOSEN)


def test_a_sync_chooses_only_where_nobody_has() -> None:
    given(network).when(network.DesignateIfNone("RAIDA24")).then(FOUND)
    given(network, CHOSEN).when(network.DesignateIfNone("RAIDA24")).then()
    given(network, FOUND).when(network.DesignateIfNone("RAIDA3")).then()


def test_it_claims_no_names() -> None:
    assert held(network, [CHOSEN, FOUND]) == set()
