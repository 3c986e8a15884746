"""The command line of `tests.vm`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from . import arm64, images, machine


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm",
        description="Run a command as root on another kernel: same folder, Python and files.",
    )
    parser.add_argument(
        "--kernel", default="6.12", help="a series of Debian's kernels (default: %(default)s)"
    )
    parser.add_argument(
        "--arch",
        choices=images.FLAVOURS,
        default=images.FLAVOURS[0],
        help="the machine; all but this one have files of their own (default: %(default)s)",
    )
    parser.add_argument("--nodes", type=int, default=2, help="NUMA nodes (default: %(default)s)")
    parser.add_argument(
        "--cpus", type=int, default=4, help="processors in all (default: %(default)s)"
    )
    parser.add_argument(
        "--memory", type=int, default=4096, help="MiB in all (default: %(default)s)"
    )
    parser.add_argument("--swap", type=int, default=0, help="MiB of swap (default: none)")
    parser.add_argument(
        "--timeout", type=float, default=1800, help="seconds, boot included (default: %(default)s)"
    )
    parser.add_argument(
        "--if-possible",
        action="store_true",
        help="what cannot be set up or done in time is said in one line, and is no error",
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, after --")
    return parser.parse_args(arguments)


@contextmanager
def _guest(options: argparse.Namespace) -> Iterator[machine.Machine]:
    kernel = images.kernel(options.kernel, options.arch)
    shape = (options.nodes, options.cpus, options.memory, options.swap)
    if options.arch == images.FLAVOURS[0]:
        yield machine.Machine(kernel, *shape)
        return
    root = arm64.root_with(kernel)
    with arm64.built_tree() as tree:
        foreign = machine.Foreign(arm64.ARCH, arm64.PROCESSOR, root, tree, arm64.PACKAGES)
        yield machine.Machine(kernel, *shape, foreign)


def main(arguments: list[str]) -> int:
    """Exit code of the command; 2 for what cannot be set up (see --if-possible)."""
    options = _parse(arguments)
    started = time.monotonic()
    with ExitStack() as stack:
        try:
            images.install_packages(options.arch)
            bin_folder = images.virtme()
            guest = stack.enter_context(_guest(options))
        except ValueError as error:
            print(f"vm: {error}", file=sys.stderr)
            return 2
        except (images.SetupError, OSError) as error:
            skipped = f"Linux {options.kernel} is skipped: " if options.if_possible else ""
            print(f"vm: {skipped}{error}", file=sys.stderr)
            return 0 if options.if_possible else 2
        code = machine.run(guest, options.command, bin_folder=bin_folder, seconds=options.timeout)
    took = time.monotonic() - started
    print(
        f"vm: Linux {guest.kernel.release}, {guest.nodes} nodes: exit {code} after {took:.0f} s",
        file=sys.stderr,
    )
    if code == machine.TIMED_OUT and options.if_possible:
        print(f"vm: Linux {options.kernel} is skipped: too slow here", file=sys.stderr)
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
