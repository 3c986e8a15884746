"""``ksmpy analyze``."""

from __future__ import annotations

import argparse

from ksmpy.cli.command import Command, Parser, at_least
from ksmpy.cli.output import human_bytes, print_json, progress, table


class Analyze(Command):
    """duplicates in a live process, by mapping

    Reads the process's anonymous memory and changes nothing in it. Needs the right to do so: the
    same user where the system allows it (kernel.yama.ptrace_scope), or root.
    """

    name = "analyze"

    def arguments(self, parser: Parser) -> None:
        super().arguments(parser)
        parser.option(
            "--top",
            type=at_least(0),
            default=20,
            metavar="N",
            help="rows shown, most saving first; 0: all (20)",
        )
        parser.add_argument("pid", type=at_least(1), metavar="PID")

    def run(self, options: argparse.Namespace) -> int:
        from ksmpy import analyze
        from ksmpy.watch.analyze import MappingEstimate

        what = f"reading process {options.pid}"
        with progress(quiet=options.json) as update:
            estimate = analyze(options.pid, progress=lambda done, total: update(what, done, total))
        if options.json:
            print_json(estimate)
            return 0
        rows = sorted(estimate.buffers, key=lambda row: row.duplicate_pages, reverse=True)
        shown = [row for row in rows if row.pages][: options.top or None]
        table(
            f"process {options.pid}: what merging would save, its tables aside",
            ("mapping", "kind", "pages", "zero", "duplicate", "would save", "merged already"),
            [
                (
                    f"{row.start:x}-{row.end:x}",
                    row.name,
                    row.pages,
                    row.zero_pages,
                    row.duplicate_pages,
                    human_bytes(row.saved_bytes),
                    row.merged_pages,
                )
                for row in shown
                if isinstance(row, MappingEstimate)
            ],
        )
        if len(shown) < len(rows):
            print(f"{len(rows) - len(shown)} more mappings (--top 0: all that have pages)")
        print(estimate)
        return 0
