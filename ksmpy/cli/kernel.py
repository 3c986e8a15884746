"""``ksmpy kernel``."""

from __future__ import annotations

import argparse
import errno
import os

from ksmpy.cli.command import Command, CommandError, Parser, at_least
from ksmpy.cli.output import print_json, table

_KNOBS = (
    "pages_to_scan",
    "sleep_millisecs",
    "merge_across_nodes",
    "max_page_sharing",
    "use_zero_pages",
    "smart_scan",
)


class Kernel(Command):
    """the kernel's own KSM for this or another program

    status [PID]           its settings and counters; with a PID also what it does for that process
    enable [PROGRAM ...]   switch it on (root); with a program: run it with all its memory mergeable
    disable [--unmerge]    switch it off (root); merged pages stay merged, unless --unmerge is given
    """

    name = "kernel"
    json = False

    def arguments(self, parser: Parser) -> None:
        actions = parser.add_subparsers(
            metavar="ACTION", dest="action", required=True, parser_class=Parser
        )
        status = actions.add_parser("status", help="settings and counters")
        super().arguments(status)
        status.option("--json", action="store_true", help="print JSON")
        status.add_argument("pid", nargs="?", type=at_least(1), metavar="PID")
        status.set_defaults(run=self.status)
        enable = actions.add_parser("enable", help="switch it on, or run a program with it")
        for knob in _KNOBS:
            enable.option(
                f"--{knob.replace('_', '-')}",
                type=at_least(0),
                metavar="N",
                prefix="KSMPY_KERNEL_",  # KSMPY_ alone is for the engine's own knobs
                help=f"the knob {knob}",
            )
        enable.add_argument("program", nargs=argparse.REMAINDER, metavar="PROGRAM [ARGS...]")
        enable.set_defaults(run=self.enable)
        disable = actions.add_parser("disable", help="switch it off")
        disable.option(
            "--unmerge", action="store_true", help="give every merged page its own memory again"
        )
        disable.set_defaults(run=self.disable)

    def status(self, options: argparse.Namespace) -> int:
        from ksmpy.watch import kernel

        report: dict[str, object] = {"ksm": kernel.read()}
        if options.pid:
            report["process"] = kernel.process_stat(options.pid)
        if options.json:
            print_json(report)
            return 0
        table(
            "the kernel's KSM",
            ("name", "value"),
            [(name, value) for name, value in kernel.read().items()],
        )
        if options.pid:
            table(
                f"process {options.pid}",
                ("name", "value"),
                list(kernel.process_stat(options.pid).items()),
            )
        return 0

    def enable(self, options: argparse.Namespace) -> int:
        from ksmpy.watch import kernel

        program = options.program[1:] if options.program[:1] == ["--"] else options.program
        knobs = {
            knob: getattr(options, knob) for knob in _KNOBS if getattr(options, knob) is not None
        }
        if kernel.read()["run"] != 1 or knobs:
            self._write(knobs | {"run": 1})
        if not program:
            print(
                "the kernel's KSM scans now, in programs that offer memory"
                " (ksmpy kernel enable PROGRAM)"
            )
            return 0
        return self._replace(program)

    def _replace(self, program: list[str]) -> int:
        from ksmpy.watch import kernel

        try:
            kernel.merge_process()
        except OSError as error:
            raise CommandError(
                f"cannot offer a whole program's memory to the kernel's KSM: {error}",
                "needs Linux 6.4 and CAP_SYS_RESOURCE (root)",
            ) from None
        try:
            os.execvp(program[0], program)
        except OSError as error:
            raise CommandError(f"cannot run {program[0]}: {error.strerror}") from None

    def disable(self, options: argparse.Namespace) -> int:
        if options.unmerge:
            self._write({"run": 2})
        self._write({"run": 0})
        print(
            "the kernel's KSM is off" + ("" if options.unmerge else "; what is merged stays merged")
        )
        return 0

    @staticmethod
    def _write(knobs: dict[str, int]) -> None:
        from ksmpy.watch import kernel

        for name, value in knobs.items():
            try:
                kernel.write(name, value)
            except PermissionError:
                raise CommandError(
                    f"the kernel's KSM knob {name} cannot be set", "run it as root"
                ) from None
            except OSError as error:
                hint = (
                    "unmerge first: ksmpy kernel disable --unmerge"
                    if error.errno == errno.EBUSY
                    else ""
                )
                raise CommandError(
                    f"the kernel refuses {name}={value}: {error.strerror}", hint
                ) from None
