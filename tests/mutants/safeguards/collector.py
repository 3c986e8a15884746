"""csrc/python/collector.h."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "what follows a collection is not traced",
        file="csrc/python/collector.h",
        old="        PyThreadState_EnterTracing(state);\n    int rc = run_sweep(unused);\n"
        "    if (PyThreadState_LeaveTracing)\n        PyThreadState_LeaveTracing(state);\n",
        new="        (void)state;\n    int rc = run_sweep(unused);\n",
        tests=("test_lifetime.py::test_a_collection_in_the_midst_of_what_follows_one[settrace]",),
    ),
]
