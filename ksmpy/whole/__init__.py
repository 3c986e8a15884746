"""Whole programs, unchanged: what `ksmpy run` puts into every Python process below it."""

from __future__ import annotations
