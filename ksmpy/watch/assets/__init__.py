"""What a report page is made of."""

from __future__ import annotations
