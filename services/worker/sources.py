"""The kinds that bring items from outside, in one visible list."""

from __future__ import annotations

from collections.abc import Mapping

from services.worker import collecting, network, plane

#: kind -> what makes its source
SOURCES: Mapping[str, collecting.Make] = {"network": network.Network, "plane": plane.Plane}
