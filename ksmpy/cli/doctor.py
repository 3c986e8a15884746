"""``ksmpy doctor``."""

from __future__ import annotations

import argparse

from ksmpy.cli.command import Command
from ksmpy.cli.output import print_json, table


class Doctor(Command):
    """what works here, and how to fix what does not

    The exit code is 0 when merging works here in some way, and 1 when it does not.
    """

    name = "doctor"

    def run(self, options: argparse.Namespace) -> int:
        from ksmpy import doctor

        checks = doctor()
        if options.json:
            print_json(checks)
        else:
            table(
                "",
                ("check", "", "detail"),
                [(check.name, "ok" if check.ok else "no", check.detail) for check in checks],
            )
            for check in checks:
                if not check.ok and check.hint:
                    print(f"{check.name}: {check.hint}")
        return 0 if any(check.ok for check in checks if check.name == "engine") else 1
