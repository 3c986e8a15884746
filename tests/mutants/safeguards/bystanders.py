"""csrc/freeze/bystanders.c and csrc/os/calls.c."""

from __future__ import annotations

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "nothing is merged beside a system call that would fail",
        file="csrc/freeze/freezer.c",
        old="    if (!bystanders_hold(&fz->bystanders, own_tasks(fz), address, n))\n"
        "        return FREEZE_LATER;\n",
        new="",
        tests=(
            "test_calls.py::test_a_page_that_a_thread_reads_into_is_not_merged[signal+checksum]",
        ),
    ),
    Mutant(
        "nothing comes back beside a system call that would fail",
        file="csrc/freeze/freezer.c",
        old="    else if (!bystanders_hold(&fz->bystanders, own_tasks(fz), address, n))\n"
        "        return -EBUSY;\n",
        new="",
        tests=(
            "test_calls.py::test_a_page_that_a_thread_reads_into_stays_what_it_is[signal+checksum]",
        ),
    ),
    Mutant(
        "the interpreter stands still",
        file="csrc/freeze/bystanders.c",
        old="    if (!take_interpreter_lock())\n        return -EBUSY;\n",
        new="    keeper.wanted++;\n",
        tests=("c/test_calls.c::the_interpreter_stands_still_while_memory_is_held",),
    ),
    Mutant(
        "a fork is not kept waiting for the interpreter",
        file="csrc/freeze/bystanders.c",
        old="more && !keeper.taken && !keeper.forks;",
        new="more && !keeper.taken;",
        tests=("c/test_calls.c::a_fork_is_not_kept_waiting",),
    ),
    Mutant(
        "a fork takes no lock of the interpreter's along",
        file="csrc/freeze/bystanders.c",
        old="    while (atomic_load(&keeper.has))\n        wait_for_change();\n",
        new="",
        tests=("c/test_calls.c::a_fork_takes_no_lock_along",),
    ),
    Mutant(
        "a buffer longer than all memory reaches what lies behind its start",
        file="csrc/os/calls.c",
        old="(buffer >= question->start || length > question->start - buffer)",
        new="question->start < buffer + length",
        tests=("c/test_calls.c::a_call_may_ask_for_more_than_there_is",),
    ),
    Mutant(
        "lists of buffers are looked at",
        file="csrc/os/calls.c",
        old="        return list_reaches(question, arguments[1], arguments[2]);\n",
        new="        return false;\n",
        tests=("c/test_calls.c::a_call_is_known_by_its_buffers",),
    ),
    Mutant(
        "structures may lie on two pages",
        file="csrc/os/calls.c",
        old="        if (reaches(question, arguments[i], PAGE_SIZE))\n",
        new="        if (reaches(question, arguments[i], 1))\n",
        tests=("c/test_calls.c::a_structure_may_lie_on_two_pages",),
    ),
    Mutant(
        "who runs is believed to make calls",
        file="csrc/os/calls.c",
        old="    return ticks >= TICKS;\n",
        new="    return true;\n",
        tests=("c/test_calls.c::who_makes_calls_all_the_time_is_not_believed",),
    ),
    Mutant(
        "who computes is believed",
        file="csrc/os/calls.c",
        old="    return ticks >= TICKS;\n",
        new="    return ticks > 2 * ticks;\n",
        tests=("c/test_calls.c::who_runs_is_believed_once_it_was_seen_to_compute",),
    ),
    Mutant(
        "what was written and cannot come back is not counted as shared",
        file="csrc/merge/written.c",
        old="->counted += is_shared(merger->pages, page + (uint32_t)i);",
        new="->counted += 0;",
        tests=(
            "test_calls.py::test_a_page_that_a_thread_reads_into_stays_what_it_is[signal+checksum]",
        ),
    ),
    Mutant(
        "calls of libraries in C that meet a freeze are made again",
        file="csrc/engine/pass.c",
        old="        retries_lead(); /*",
        new="        (void)retries_lead; /*",
        tests=("test_retries.py::test_calls_into_frozen_memory_come_out_right[signal+checksum]",),
    ),
    Mutant(
        "an object that was just being loaded is looked at again",
        file="csrc/os/imports.c",
        old="    led.looks--;",
        new="    led.looks = look.n ? led.looks - 1 : 0;",
        tests=("test_linker_lock.py",),
    ),
    Mutant(
        "a read of a file that a freeze has cut short goes on",
        file="csrc/freeze/retries.c",
        old="        if (done == n || !is_edge(buffer + done) || !is_cut(&now, fd))\n",
        new="        if (done <= n)\n",
        tests=("test_retries.py::test_calls_into_frozen_memory_come_out_right[signal+checksum]",),
    ),
    Mutant(
        "each buffer of a list may lie in what is frozen",
        file="csrc/freeze/retries.c",
        old="    return done == buffers[i].iov_len || is_edge(",
        new="    return is_edge(",
        tests=("test_retries.py::test_calls_into_frozen_memory_come_out_right[signal+checksum]",),
    ),
    Mutant(
        "what could not be handed over and is gone is not waited for",
        file="csrc/freeze/attempts.c",
        old="    return kept && attempt_is_again(attempt);\n",
        new="    return attempt_is_again(attempt);\n",
        tests=("test_retries.py::test_calls_into_frozen_memory_come_out_right[signal+checksum]",),
    ),
    Mutant(
        "few random bytes are whole",
        file="csrc/freeze/retries.c",
        old="        if (done == n || !attempt_met_freeze(&now))\n",
        new="        if (done <= n)\n",
        tests=("c/test_retries.c::few_random_bytes_are_whole",),
    ),
    Mutant(
        "copies between processes are whole",
        file="csrc/freeze/cross_memory.c",
        old="            !attempt_is_cut(&now))\n",
        new="            true)\n",
        tests=("c/test_retries.c::copies_between_processes_are_whole",),
    ),
    Mutant(
        "a file is unlocked when its reader is cancelled",
        file="csrc/freeze/retries.c",
        old="    pthread_cleanup_push(unlock, file);\n"
        "    done = fread_locked(buffer, n, file, fd, &now);\n"
        "    pthread_cleanup_pop(1);\n",
        new="    done = fread_locked(buffer, n, file, fd, &now);\n    unlock(file);\n",
        tests=("c/test_retries.c::who_is_cancelled_keeps_no_file_locked",),
    ),
    Mutant(
        "time that is over is not waited again",
        file="csrc/freeze/waiting.c",
        old="    return end > now ? end - now : 0;\n",
        new="    return end > now ? end - now : now;\n",
        tests=("c/test_retries.c::time_that_is_over_is_not_waited_again",),
    ),
    Mutant(
        "all engines are waited for",
        file="csrc/freeze/freezes.c",
        old="    while (!is_all_thawed()) {\n",
        new="    is_all_thawed();\n"
        "    for (uint64_t last = freezes_begun(); freezes_ended() < last;) {\n",
        tests=("c/test_retries.c::all_engines_are_waited_for",),
    ),
    Mutant(
        "who waits for events has patience with each freeze",
        file="csrc/freeze/attempts.c",
        old="    if (!attempt->since || has_waited(attempt, now))\n",
        new="    if (!attempt->since || now < attempt->made)\n",
        tests=("c/test_retries.c::who_waits_for_events_has_patience_again",),
    ),
    Mutant(
        "who gets on has patience with each freeze",
        file="csrc/freeze/retries.c",
        old="        if (got)\n            attempt_got_on(now);\n",
        new="",
        tests=("c/test_retries.c::who_gets_on_has_patience_again",),
    ),
    Mutant(
        "a terminal's line that is gone is not waited for",
        file="csrc/freeze/attempts.c",
        old="        return is_endless(status.st_rdev);\n",
        new="        return true;\n",
        tests=("c/test_retries.c::a_line_that_is_lost_is_said_to_be",),
    ),
    Mutant(
        "devices without end are read again",
        file="csrc/freeze/attempts.c",
        old="        return is_endless(status.st_rdev);\n",
        new="        return false;\n",
        tests=("c/test_retries.c::devices_without_end_are_read_again",),
    ),
    Mutant(
        "what a stream cannot give again is not waited for",
        file="csrc/freeze/retries.c",
        old="ferror(file) && attempt_is_read_again(now, fd) &&",
        new="ferror(file) && fd >= 0 && attempt_is_again(now) &&",
        tests=("c/test_retries.c::a_line_of_a_stream_that_is_lost_is_said_to_be",),
    ),
    Mutant(
        "what is out of band is not received twice",
        file="csrc/freeze/receiving.c",
        old="    return !(flags & ONCE) && attempt",
        new="    return (flags | 1) && attempt",
        tests=("c/test_retries.c::what_is_out_of_band_is_not_read_twice",),
    ),
    Mutant(
        "who wants all of a stream gets all",
        file="csrc/freeze/receiving.c",
        old="(size_t)got < n && is_cut(",
        new="(size_t)got > n && is_cut(",
        tests=("c/test_retries.c::who_wants_all_gets_all",),
    ),
    Mutant(
        "who is interrupted in a stream has what there was",
        file="csrc/freeze/receiving.c",
        old="&& there > 0;\n",
        new="&& there >= 0;\n",
        tests=("c/test_retries.c::who_is_interrupted_has_what_there_was",),
    ),
    Mutant(
        "datagrams are not put together",
        file="csrc/freeze/receiving.c",
        old="    bool cut = attempt_is_from_stream(fd) && ",
        new="    bool cut = ",
        tests=("c/test_retries.c::datagrams_are_not_put_together",),
    ),
    Mutant(
        "a connection is not lost to a frozen address",
        file="csrc/freeze/receiving.c",
        old="    int got = accept(fd, (struct sockaddr *)&name, &length);\n",
        new="    int got = accept(fd, from, size);\n",
        tests=("c/test_retries.c::who_connects_may_have_a_frozen_address",),
    ),
    Mutant(
        "the kernel writes no sender into frozen memory",
        file="csrc/freeze/receiving.c",
        old="    struct sockaddr *to = from ? (struct sockaddr *)&name : NULL;\n",
        new="    struct sockaddr *to = from;\n",
        tests=("c/test_retries.c::the_address_of_a_sender_may_be_frozen",),
    ),
    Mutant(
        "the kernel writes into no frozen header of a message",
        file="csrc/freeze/receiving.c",
        old="    MAKE(got, is_received_again(&now, fd, flags), recvmsg(fd, &own, flags));\n"
        "    return got >= 0 && hand_over",
        new="    MAKE(got, is_received_again(&now, fd, flags), recvmsg(fd, message, flags));\n"
        "    return got < 0 && hand_over",
        tests=("c/test_retries.c::the_header_of_a_message_may_be_frozen",),
    ),
    Mutant(
        "the kernel writes no descriptors into frozen memory",
        file="csrc/freeze/receiving.c",
        old="    if (given.msg_control && small)\n",
        new="    if (given.msg_control && !small)\n",
        tests=("c/test_retries.c::descriptors_come_through",),
    ),
    Mutant(
        "bad addresses are answered as by the kernel",
        file="csrc/freeze/retries.c",
        old="    guard_calls();\n",
        new="",
        tests=("c/test_retries.c::bad_addresses_are_answered_as_by_the_kernel",),
    ),
    Mutant(
        "the status of a child is not lost",
        file="csrc/freeze/asking.c",
        old="wait4(pid, status ? &own_status : NULL,",
        new="wait4(pid, status ? (own_status = 0, status) : NULL,",
        tests=("c/test_retries.c::a_child_is_told_of_in_frozen_memory",),
    ),
    Mutant(
        "an error of a socket is not lost",
        file="csrc/freeze/asking.c",
        old="room > sizeof own ||",
        new="room <= sizeof own ||",
        tests=("c/test_retries.c::an_error_of_a_socket_is_not_lost",),
    ),
    Mutant(
        "nothing is frozen where a thread has an alternate signal stack",
        file="csrc/freeze/freezer.c",
        old="    uint64_t before = fz->bystanders.matter ? signal_stacks_before(address, n) : n;\n",
        new="    uint64_t before = fz->bystanders.matter ? n : n;\n",
        tests=(
            "test_signal_stacks.py::test_a_stack_that_a_thread_sets_stays_out[signal+checksum]",
        ),
    ),
    Mutant(
        "the alternate stack of the thread that makes the engine is known",
        file="csrc/freeze/freezer.c",
        old="        signal_stacks_note_own();\n",
        new="        (void)0;\n",
        tests=(
            "test_signal_stacks.py::"
            "test_the_stack_of_who_makes_the_engine_stays_out[signal+checksum]",
        ),
    ),
    Mutant(
        "the alternate stack of the main thread is known",
        file="csrc/python/interpreter.h",
        old="    Py_AddPendingCall(note_own_stack, NULL);\n",
        new="    (void)note_own_stack;\n",
        tests=(
            "test_signal_stacks.py::test_the_stack_of_the_main_thread_stays_out[signal+checksum]",
        ),
    ),
    Mutant(
        "a child knows the alternate stack of the thread that forked",
        file="csrc/freeze/freezer.c",
        old="        signal_stacks_note_own(); /* the thread has another number here */\n",
        new="        (void)0;\n",
        tests=(
            "test_signal_stacks.py::"
            "test_a_child_has_the_stack_of_the_thread_that_forked[signal+checksum]",
        ),
    ),
    Mutant(
        "an alternate stack of a thread that has ended is none",
        file="csrc/freeze/signal_stacks.c",
        old="        if (rest < n && !is_over(&threads[i]))\n",
        new="        if (rest < n)\n",
        tests=(
            "test_signal_stacks.py::"
            "test_the_stack_of_a_thread_that_has_ended_is_merged[signal+checksum]",
        ),
    ),
    Mutant(
        "an alternate stack waits for what is frozen",
        file="csrc/freeze/signal_stacks.c",
        old="        freezes_wait(os_now_ns());\n",
        new="        os_now_ns();\n",
        tests=("test_retries.py::test_calls_into_frozen_memory_come_out_right[signal+checksum]",),
    ),
    Mutant(
        "what the dynamic linker has sealed is sealed again",
        file="csrc/os/imports.c",
        old="    if (sealed && open)\n        mprotect((void *)page, PAGE_SIZE, PROT_READ);\n",
        new="",
        tests=("test_retries.py::test_libraries_are_led_however_linked[signal+checksum-at once]",),
    ),
    Mutant(
        "handlers of signals do not block SIGSEGV",
        file="csrc/freeze/signal.c",
        old="    handlers_let_faults_in();\n",
        new="",
        tests=("c/test_freeze.c::a_handler_that_blocks_all_signals_waits",),
    ),
    Mutant(
        "threads of libraries do not block SIGSEGV",
        file="csrc/freeze/signal_masks.c",
        old="    sigdelset(own, SIGSEGV);\n    return true;\n",
        new="    return false;\n",
        tests=("test_signal_masks.py::test_all_signals_but_one_are_blocked[0]",),
    ),
    Mutant(
        "signals are blocked as asked where no engine needs SIGSEGV",
        file="csrc/freeze/signal_masks.c",
        old="    if (!set || !signal_is_in_use() || ",
        new="    if (!set || ",
        tests=("test_signal_masks.py::test_all_are_blocked_where_pages_are_frozen_otherwise[0]",),
    ),
    Mutant(
        "a message of a queue is not received into frozen memory",
        file="csrc/freeze/asking.c",
        old="    return n > QUEUED_MAX ? ",
        new="    return n ? ",
        tests=("c/test_retries.c::the_message_of_a_queue_is_not_lost",),
    ),
    Mutant(
        "copies between processes that are called by their number are made again",
        file="csrc/freeze/cross_memory.c",
        old=" IF_IT_IS(process_vm_readv)",
        new="",
        tests=("c/test_retries.c::copies_by_number_are_whole",),
    ),
    Mutant(
        "other calls by number go on without a frame in between",
        file="csrc/freeze/cross_memory.c",
        old='"    jmp syscall@PLT\\n"',
        new='"    push $0\\n    call syscall@PLT\\n    pop %rcx\\n    ret\\n"',
        tests=("c/test_retries.c::other_calls_by_number_go_on",),
    ),
]
