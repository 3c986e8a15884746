"""csrc/engine/create.c and csrc/engine/fork.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "a child inherits no engine that is half made",
        file="csrc/engine/create.c",
        old="        fork_hold();\n        error = make(",
        new="        fork_hold();\n        fork_let_go();\n        error = make(",
        tests=("c/test_forks.c::a_child_inherits_no_engine_that_is_half_made",),
    ),
    Mutant(
        "a child inherits nothing that is only tried",
        file="csrc/engine/create.c",
        old="    fork_hold();\n    error = choose(",
        new="    fork_hold();\n    fork_let_go();\n    error = choose(",
        tests=("c/test_forks.c::a_child_inherits_nothing_that_is_only_tried",),
    ),
    Mutant(
        "a child inherits no engine that is half closed",
        file="csrc/engine/create.c",
        old="    fork_delist(engine);\n",
        new="    fork_delist(engine);\n    fork_let_go();\n",
        tests=("c/test_forks.c::a_child_inherits_no_engine_that_is_half_closed",),
    ),
    Mutant(
        "a child does not ask for what its parent keeps spare",
        file="csrc/store/extents.c",
        old="    return store->memory ? store->head->spare_frames : 0;",
        new="    return store->head->spare_frames;",
        tests=("c/test_store.c::a_child_gives_back_what_it_inherited",),
    ),
    Mutant(
        "a lease takes no free descriptor",
        file="csrc/os/lease.c",
        old="int error = os_ask(take, &wish);",
        new="int error = take(&wish, false);",
        tests=("test_fork.py::test_a_fork_without_a_free_descriptor[uffd-wp+wp-async]",),
    ),
    Mutant(
        "a fork waits for an engine's structures",
        file="csrc/engine/fork.c",
        old="""\
        engine_lock(engine);
        pthread_mutex_lock(&engine->merger.fz.lock);
""",
        new="""\
        pthread_mutex_lock(&engine->merger.fz.lock);
""",
        tests=("c/test_engine.c::nothing_is_half_done_at_a_fork",),
    ),
    Mutant(
        "a fork waits for what is frozen",
        file="csrc/engine/fork.c",
        old="""\
        engine_lock(engine);
        pthread_mutex_lock(&engine->merger.fz.lock);
""",
        new="""\
        engine_lock(engine);
""",
        tests=("c/test_engine.c::nothing_is_half_done_at_a_fork",),
    ),
    Mutant(
        "a child's lease lasts while an overlay may be anywhere",
        file="csrc/pages/sharing.c",
        old="!pages->astray && !pages->pins.count && ",
        new="",
        tests=("test_fork.py::test_a_child_keeps_the_frames_of_a_single_page",),
    ),
    Mutant(
        "a child's lease lasts while a page is merged",
        file="csrc/pages/sharing.c",
        old=" && !pages->pages_in[PAGE_SHARED])",
        new=")",
        tests=("test_fork.py::test_a_child_keeps_the_frames_of_a_single_page",),
    ),
]
