"""Ten thousand histories of devices around one library, of 50 to 500 operations each."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

from tests.device.world import World

HISTORIES = 10_000


def _play(seed: int) -> str:
    world = World(seed, devices=3 + seed % 3)
    try:
        world.play(50 + seed * 7 % 451)
        world.settle()
        world.check()
    except Exception as error:  # a seed is told, however it ends
        return f"seed {seed}: {error!r}"
    return ""


def test_ten_thousand_histories_converge_and_lose_nothing() -> None:
    with ProcessPoolExecutor(2) as pool:
        troubles = [said for said in pool.map(_play, range(HISTORIES), chunksize=100) if said]
    assert not troubles, troubles[:5]
