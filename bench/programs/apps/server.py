"""A server with two equal arrays of 32 MiB, and a client that asks it 6000 times.

How long the client waited is written to the file $FIGURES: percentiles, in seconds.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import time

import numpy as np

QUESTIONS = 6000
WARMING = 600


async def serve(ready) -> None:
    """Answer until the client has gone."""
    first = np.random.default_rng(1).random(4 << 20)
    second = first.copy()
    asked = {}
    over = asyncio.Event()

    async def talk(reader, writer) -> None:
        while line := await reader.readline():
            number = int(line)
            asked[number % 5000] = [number] * 20
            begin = number * 997 % (len(first) - 1000)
            answer = first[begin : begin + 1000].sum() + second[begin]
            writer.write(f"{answer}\n".encode())
        over.set()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    ready.send(server.sockets[0].getsockname()[1])
    await over.wait()


def ask(ready) -> None:
    """Ask, a question each millisecond, and look at the clock."""
    import socket

    with socket.create_connection(("127.0.0.1", ready.recv())) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        file = connection.makefile("rb")
        seconds, total = [], 0.0
        for number in range(QUESTIONS):
            time.sleep(0.001)
            begin = time.perf_counter()
            connection.sendall(f"{number}\n".encode())
            total += float(file.readline())
            seconds.append(time.perf_counter() - begin)
    print(total)
    waited = np.percentile(seconds[WARMING:], [50, 99, 99.9, 100])
    if "FIGURES" in os.environ:
        with open(os.environ["FIGURES"], "w") as figures:
            json.dump(dict(zip(("p50", "p99", "p99.9", "longest"), waited, strict=True)), figures)


if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    client = multiprocessing.get_context("fork").Process(target=ask, args=(here,))
    client.start()
    asyncio.run(serve(there))
    client.join()
    sys.exit(client.exitcode)
