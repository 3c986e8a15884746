"""joblib with its loky workers: WORKERS."""

from __future__ import annotations

import sys

import load
import task
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

if __name__ == "__main__":
    workers = int(sys.argv[1])
    while not load.over():
        try:
            Parallel(n_jobs=workers)(delayed(task.work)(i) for i in range(2 * workers))
        except TerminatedWorkerError:
            pass
