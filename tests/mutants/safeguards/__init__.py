"""The list: one module for each C file, with its ``MUTANTS``."""
