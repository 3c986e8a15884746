"""What memory there is: buffers and their owners, mappings, and what of both can be merged."""

from __future__ import annotations
