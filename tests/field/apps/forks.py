"""A web server whose workers are forked before each loads: Tornado's. Its port and their number."""

from __future__ import annotations

import asyncio
import sys

import load
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.process import fork_processes
from tornado.web import Application, RequestHandler


class Check(RequestHandler):
    """Answers with a checksum."""

    def get(self) -> None:
        """For any request."""
        self.write(load.check(self.settings["weights"]))


async def main(sockets: list) -> None:
    """Serve until the process is ended."""
    server = HTTPServer(Application([("/", Check)], weights=load.load()))
    server.add_sockets(sockets)
    await asyncio.Event().wait()


listening = bind_sockets(int(sys.argv[1]), "127.0.0.1")
fork_processes(int(sys.argv[2]))
asyncio.run(main(listening))
