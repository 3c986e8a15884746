"""Two lives without end, for as long as one likes. docs/testing.md has the details.

``python -m tests.soak --seconds 3600`` puts one engine under threads that write and read, forks,
swap, migration, and buffers that die and come, switches merge_across_nodes back and forth, and
holds it to every byte, to its own checker, to EBUSY as the worst answer, and to leaving nothing
behind.

``python -m tests.soak.fleet --seconds 1800`` puts processes on one store that merge, fork, exec,
end and are killed at any moment, and holds the store to what is seen of them from outside.
"""
