"""The core process: relay, sealer, projector, scheduler, and the network at the start."""

from __future__ import annotations

import sys

from services import consumers, erasures, main, network, notifier, projector, relay, scheduler, sessions, sweeper

ROLES = {
    "relay": relay.run,
    "sealer": relay.run_sealer,
    "projector": projector.run,
    "scheduler": scheduler.run,
    "sweeper": sweeper.run,
    "erasures": erasures.run,
    "sessions": sessions.run,
    "network": network.run,
    "notifier": notifier.run,
    "consumers": consumers.run,
}

if __name__ == "__main__":
    main.background()
    sys.exit(main.main("core", lambda _: ROLES, feed=True))
