"""Retention by time, and devices that are not heard of: each with settings, and so an installation, of its own."""

from __future__ import annotations

import os

import pytest

from tests.journeys.libraries import user
from tests.journeys.system import System, until
from tests.journeys.test_retention import SETTINGS, available, blob


def test_a_device_not_heard_of_is_stale_first_and_then_not_waited_for(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    base = tmp_path_factory.mktemp("stale")
    system = System(base, System(base).settings + SETTINGS + "stale_days = 0.0001\n")
    try:
        system.start()
        ann = user(system)
        laptop, phone = ann.pair()
        for one in range(4):
            laptop.upload("stale", os.urandom(1000 + one))
        laptop.follow()
        assert until(lambda: laptop.follow() == [] and available(laptop, "stale") == [True, True, False, False])
        stale = [one for one in system.events() if one["type"] == "devices.stale" and one["subject"].endswith(phone.id)]
        assert len(stale) == 1
    finally:
        system.stop()


def test_after_their_time_replaced_bytes_go(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("days")
    quick = "[library]\nkeep_days = 0.00003\nretain_s = 0.2\ndrop_s = 0.2\n"
    system = System(base, System(base).settings + quick)
    try:
        laptop = user(system.start()).device()
        data = [os.urandom(1000) for _ in range(3)]
        for one in data:
            laptop.upload("days", one)
        laptop.upload("other", data[0])
        laptop.report({"path": "other", "change_type": "deleted"})
        laptop.follow()
        assert until(lambda: available(laptop, "days") == [True, False, False])
        assert until(lambda: [blob(system, one) for one in data] == [False, False, True])
        assert until(lambda: available(laptop, "other") == [False, False])
    finally:
        system.stop()
