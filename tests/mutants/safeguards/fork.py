"""csrc/fork.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "a fork waits for an engine's structures",
        file="csrc/fork.c",
        old="""\
        engine_lock(engine);
        pthread_mutex_lock(&engine->fz.lock);
""",
        new="""\
        pthread_mutex_lock(&engine->fz.lock);
""",
        tests=("c/test_engine.c::nothing_is_half_done_at_a_fork",),
    ),
    Mutant(
        "a fork waits for what is frozen",
        file="csrc/fork.c",
        old="""\
        engine_lock(engine);
        pthread_mutex_lock(&engine->fz.lock);
""",
        new="""\
        engine_lock(engine);
""",
        tests=("c/test_engine.c::nothing_is_half_done_at_a_fork",),
    ),
]
