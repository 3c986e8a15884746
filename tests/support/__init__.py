"""Helpers of the tests: an oracle of what really shares memory, torture threads, failing calls."""
