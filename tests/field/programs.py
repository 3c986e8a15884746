"""Which programs there are, and how each is started."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIBRARIES", "PROGRAMS", "Program"]

_GUNICORN = "{bin}/gunicorn -w {n} -b 127.0.0.1:{port} --log-level warning"
# Root, and more ranks than processors, are no matter here.
_MPI = (
    "env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 {bin}/mpirun -n {n}"
    " --map-by :OVERSUBSCRIBE --bind-to none"
)


@dataclass(frozen=True)
class Program:
    """A shell's command line, in which {n} is the number of workers."""

    name: str
    command: str
    needs: tuple[str, ...] = ()
    """What must be importable."""
    serves: bool = False
    """It answers on {port}, and ends by SIGTERM; others end when they are told by a file."""
    before: str = ""
    """What is run first, outside."""
    loads: str = "numpy"
    """"numpy": the weights of a given size; else a library's own memory."""
    copies: int | None = None
    """How many processes load: {n} if not given."""
    reloads: bool = False
    """SIGHUP makes it start its workers anew."""
    together: bool = False
    """Where one process dies all of them end."""


def _library(name: str, needs: str, before: str = "") -> Program:
    one = f"{{python}} library.py {name}"
    command = "trap 'exit 0' TERM; for i in $(seq {n}); do " + one + " & done; wait"
    return Program(name, command, (needs,), before=before, loads=name)


_MODELS = "{python} models.py "

LIBRARIES = (
    _library("onnxruntime", "onnxruntime", _MODELS + "onnxruntime"),
    _library("faiss", "faiss"),
    _library("torch", "torch", _MODELS + "torch"),
    _library("numba", "numba"),
    _library("arrow", "pyarrow"),
    _library("polars", "polars"),
    _library("pandas", "pandas"),
    _library("lightgbm", "lightgbm"),
    _library("xgboost", "xgboost"),
    _library("forest", "sklearn"),
)

PROGRAMS = (
    Program("gunicorn", _GUNICORN + " wsgi:app", ("gunicorn",), serves=True, reloads=True),
    Program(
        "gunicorn gthread",
        _GUNICORN + " -k gthread --threads 2 wsgi:app",
        ("gunicorn",),
        serves=True,
        reloads=True,
    ),
    Program(
        "gunicorn gevent",
        _GUNICORN + " -k gevent wsgi:app",
        ("gunicorn", "gevent"),
        serves=True,
        reloads=True,
    ),
    Program(
        "gunicorn aiohttp",
        _GUNICORN + " -k aiohttp.GunicornWebWorker web:application",
        ("gunicorn", "aiohttp"),
        serves=True,
        reloads=True,
    ),
    Program(
        "gunicorn max_requests",
        _GUNICORN + " --max-requests 20 --max-requests-jitter 20 wsgi:app",
        ("gunicorn",),
        serves=True,
    ),
    Program(
        "gunicorn preload", _GUNICORN + " --preload wsgi:app", ("gunicorn",), serves=True, copies=1
    ),
    Program(
        "uwsgi",
        "{bin}/uwsgi --http-socket 127.0.0.1:{port} --master --die-on-term -p {n} --lazy-apps"
        " --wsgi-file wsgi.py --callable app --home {bin}/.. --disable-logging",
        ("uwsgidecorators",),  # uWSGI itself is no module
        serves=True,
    ),
    Program(
        "uvicorn",
        "{python} -m uvicorn --workers {n} --port {port} --log-level warning --loop asyncio"
        " asgi:app",
        ("uvicorn",),
        serves=True,
    ),
    Program(
        "uvicorn uvloop",
        "{python} -m uvicorn --workers {n} --port {port} --log-level warning --loop uvloop"
        " asgi:app",
        ("uvicorn", "uvloop"),
        serves=True,
    ),
    Program(
        "hypercorn",
        "{bin}/hypercorn -w {n} -b 127.0.0.1:{port} --log-level warning asgi:app",
        ("hypercorn",),
        serves=True,
        together=True,
    ),
    Program(
        "granian",
        "{bin}/granian --interface asgi --workers {n} --port {port} --log-level warning"
        " --respawn-failed-workers asgi:app",
        ("granian",),
        serves=True,
    ),
    Program("tornado", "{python} forks.py {port} {n}", ("tornado",), serves=True),
    *(
        Program(f"ProcessPoolExecutor {method}", f"{{python}} executor.py futures {method} {{n}}")
        for method in ("fork", "spawn", "forkserver")
    ),
    Program("Pool fork", "{python} executor.py pool fork {n}"),
    Program("joblib", "{python} jobs.py {n}", ("joblib",)),
    Program(
        "celery",
        "{bin}/celery -A tasks worker -c {n} -P prefork -l error"
        " --without-gossip --without-mingle --without-heartbeat & worker=$!;"
        " trap 'kill $worker' TERM; {python} send.py; kill $worker; wait $worker",
        ("celery",),
    ),
    Program("dask", "{python} cluster.py {n} 900MiB", ("distributed",)),
    Program("jupyter", "{python} notebooks.py {n}", ("ipykernel", "pandas")),
    *(
        Program(
            f"module {method}",
            f"{{python}} module.py {method} {{n}}",
            ("torch",),
            before=_MODELS + "module",
        )
        for method in ("fork", "spawn", "forkserver")
    ),
    Program(
        "module alone",
        "trap 'exit 0' TERM; for i in $(seq {n}); do"
        " while [ ! -e $HERE/over ]; do {python} module.py alone; done & done; wait",
        ("torch",),
        before=_MODELS + "module",
    ),
    Program("mpi", _MPI + " {python} ranks.py", ("mpi4py",), together=True),
    *LIBRARIES,
)
