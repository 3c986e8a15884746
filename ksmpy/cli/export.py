"""``ksmpy export``."""

from __future__ import annotations

import argparse
import signal
import threading
from typing import TYPE_CHECKING

from ksmpy.cli.command import Command, CommandError, Parser

if TYPE_CHECKING:
    from ksmpy.watch.metrics import Served


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text}: 0 to 65535 are expected")
    return value


def _serve(port: int, address: str) -> Served:
    from ksmpy.watch.metrics import serve

    try:
        return serve(port, address)
    except ImportError as error:
        if not (error.name or "").startswith("prometheus_client"):
            raise
        raise CommandError(
            "prometheus_client is not installed", "pip install 'ksmpy[metrics]'"
        ) from None
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CommandError(f"cannot listen at {address} port {port}: {reason}") from None


class Export(Command):
    """serve Prometheus metrics of all stores and processes of this user

    At http://ADDRESS:PORT/metrics, until it is interrupted. Read from outside at each scrape: no
    process takes notice. Needs prometheus_client (pip install 'ksmpy[metrics]').
    """

    name = "export"
    json = False

    def arguments(self, parser: Parser) -> None:
        parser.option(
            "--port", type=_port, required=True, metavar="N", help="0 takes one that is free"
        )
        parser.option(
            "--address",
            default="127.0.0.1",
            metavar="ADDRESS",
            help="where to listen (127.0.0.1: this machine only; there is no password)",
        )

    def run(self, options: argparse.Namespace) -> int:
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        served = _serve(options.port, options.address)
        try:
            print(f"serving {served.url}", flush=True)
            ended.wait()
        except KeyboardInterrupt:
            pass  # Ctrl-C is how it is ended
        finally:
            served.stop()
        return 0
