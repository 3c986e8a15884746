"""Four gunicorn workers with the same 48 MiB, who are asked 40 times a second."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np

QUESTIONS = 800

weights = np.empty(0)


def app(environ, start_response):
    """What gunicorn's workers run."""
    global weights
    if not len(weights):
        weights = np.random.default_rng(1).random(6 << 20)
    begin = int(environ["QUERY_STRING"]) * 997 % (len(weights) - 1000)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(weights[begin : begin + 1000].sum()).encode()]


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answer(port: int, question: int) -> float:
    """Ask one of the workers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/?{question}")
    value = float(connection.getresponse().read())
    connection.close()
    return value


def main() -> None:
    """Start them, ask, and end them."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-w", "4", "-b", f"127.0.0.1:{port}"]
    here = os.path.dirname(os.path.abspath(__file__))
    command += ["--log-level", "critical", "--chdir", here, "web:app"]
    server = subprocess.Popen(command)
    for _ in range(600):
        try:
            answer(port, 0)
            break
        except OSError:
            time.sleep(0.1)
    total = 0.0
    for question in range(QUESTIONS):
        total += answer(port, question)
        time.sleep(0.025)
    server.send_signal(signal.SIGTERM)
    server.wait()
    print(total)


if __name__ == "__main__":
    main()
