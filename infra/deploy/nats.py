"""Starts a NATS node in its container: tells it the public key of who signs for consumers, and becomes it."""

from __future__ import annotations

import os

from infra import callout, embedded

CONFIGURATION = "/etc/undrift/nats.conf"


def main() -> None:
    environment = dict(os.environ)
    environment["ISSUER"] = callout.Issuer(environment.pop("ISSUER_PASSWORD")).public
    program = str(embedded.nats_server())
    os.execve(program, [program, "-c", CONFIGURATION], environment)  # noqa: S606  the server takes our place


if __name__ == "__main__":
    main()
