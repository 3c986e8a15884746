#!/bin/sh
# Runs each program given, tells which failed, and fails when one did. Status 77 means skipped.
# die_after_fork: children go on with engines, and start their threads.  history_size: what a thread
# did long ago is needed to tell by the suppressions who it was.
TSAN_OPTIONS="suppressions=$(dirname "$0")/tsan.supp die_after_fork=0 history_size=7 ${TSAN_OPTIONS:-}"
export TSAN_OPTIONS
passed=0 failed=0 skipped=0
for program in "$@"; do
    echo "== $program"
    "$program"
    case $? in
    0) passed=$((passed + 1)) ;;
    77) skipped=$((skipped + 1)) ;;
    *) failed=$((failed + 1)) && echo "== FAILED: $program" ;;
    esac
done
echo "C test programs: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
