"""What programs that know nothing of ksmpy pay for it: processor time, page faults, and waits."""

from __future__ import annotations
