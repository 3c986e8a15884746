"""Benchmarks: ksmpy beside the kernel's own KSM, on the same bytes in the same run."""

from __future__ import annotations
