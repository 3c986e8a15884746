"""What can be seen of ksmpy from outside: stores, and figures for those who watch them."""

from __future__ import annotations
