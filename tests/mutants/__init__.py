"""Safeguards of the engine, each taken out once: the tests that hold it must fail then."""
