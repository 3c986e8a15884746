"""merge_across_nodes switched back and forth without end, while everything else happens.

``python -m tests.soak --seconds 3600`` puts one engine under threads that write and read, forks,
swap, migration, and buffers that die and come, and holds it to every byte, to its own checker, to
EBUSY as the worst answer, and to leaving nothing behind. docs/testing.md has the details.
"""
