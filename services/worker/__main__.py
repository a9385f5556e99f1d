"""A worker process: runs jobs of its lanes and answers asks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from domain import jobs
from services import main
from services.main import Process, Role
from services.worker import asks, sweep
from services.worker.children import Children
from services.worker.role import Worker

LANES: Mapping[str, Sequence[jobs.Lane]] = {"now": ("now",), "later": ("later",), "all": ("now", "later")}


def roles(arguments: argparse.Namespace) -> Mapping[str, Role]:
    lanes = LANES[arguments.lane]
    if "later" in lanes:
        main.background()

    async def work(process: Process) -> None:
        children = Children(process.settings.jobs.concurrency + asks.CONCURRENCY)
        await children.warm(1)
        try:
            async with asks.answering(process, children), AsyncExitStack() as stack:
                panel = None
                if process.settings.panel.url:
                    from infra.panel import Panel  # few workers have one, and its library is large

                    panel = await stack.enter_async_context(Panel(process.settings.panel))
                await Worker(process, lanes, children, panel).serve()
        finally:
            await children.close()

    return {"worker": work, "sweep": sweep.run} if "later" in lanes else {"worker": work}


if __name__ == "__main__":
    sys.exit(main.main("worker", roles))
