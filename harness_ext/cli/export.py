"""`lm_eval export`: write an edited model as a checkpoint that plain transformers loads."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from harness_ext.lm_eval_adapter.subcommand import RecipesCommand, add_model_args
from leaderboard.terminal.path_flags import local_path

if TYPE_CHECKING:
    from harness_ext.recipe.recipe import Recipe

EPILOG = """
examples:
  $ lm_eval export --model hf --model_args pretrained=demo --recipe laser --out edited
  $ lm_eval export --model hf --model_args pretrained=demo --out edited \\
      --recipe ablation-prune:calibration.task=int_mult
  $ lm_eval export --model hf --model_args pretrained=demo --out small \\
      --recipe svd:keep.param_fraction=0.6 --format factored
"""


class Export(RecipesCommand):
    """Write an edited model to a folder."""

    name = "export"
    logs = True
    summary = "Write an edited model as a checkpoint"
    description = (
        "Apply a recipe and write the model as safetensors, with tokenizer, receipt and model card; plain"
        " transformers loads it."
    )
    epilog = EPILOG

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", "-M", default="hf", metavar="<model>", help="The backend: hf")
        add_model_args(parser, "As in `lm-eval run`")
        parser.add_argument(
            "--recipe",
            required=True,
            metavar="<recipe>",
            help=(
                "A name, name:key=value,key=value, or a YAML file; a calibrated one names its task:"
                " calibration.task=TASK"
            ),
        )
        parser.add_argument("--include_path", metavar="<dir>", help="As in `lm-eval run`: a folder of further tasks")
        parser.add_argument(
            "--device", default="cpu", metavar="<device>", help="Where the edit is computed (default: cpu)"
        )
        parser.add_argument(
            "--out", type=local_path, required=True, metavar="DIR", help="The folder to write, which must not exist"
        )
        parser.add_argument(
            "--format",
            choices=("dense", "factored", "pifa"),
            default="dense",
            help=(
                "dense (default): plain transformers loads it. factored: low-rank layers as two factors, smaller and"
                " faster; transformers loads it where this package is imported. pifa: pivot rows, fewer numbers still"
            ),
        )
        parser.add_argument(
            "--shards",
            action=argparse.BooleanOptionalAction,
            default=None,
            help=(
                "Edit and write the checkpoint file by file, without loading the model: possible for recipes that learn"
                " nothing, and chosen by itself then; killed, the same command goes on (--no-shards: load the model)"
            ),
        )
        parser.add_argument(
            "--layers_on",
            metavar="DEVICE",
            help=(
                "Keep the model in memory, and only the decoder layer that is learned about and edited on this device:"
                " for models that have no room there"
            ),
        )
        parser.set_defaults(func=self.execute)

    @staticmethod
    def execute(args: argparse.Namespace) -> None:
        from harness_ext.cli.config import command_line
        from harness_ext.errors import UserError
        from harness_ext.recipe.recipe import parse_recipe
        from harness_ext.runs.applied_model import CalibrationSource
        from harness_ext.runs.export import export_recipe
        from harness_ext.runs.progress import report_for
        from harness_ext.runs.run_config import RECIPE_BACKENDS
        from harness_ext.runs.shard_export import export_by_shards

        if args.model not in RECIPE_BACKENDS:
            raise UserError(f"weights of the backend {args.model!r} cannot be edited: use --model hf")
        recipe, arguments = parse_recipe(args.recipe), {**args.model_args, "device": args.device}
        if args.format != "dense":
            _export_factored(args, recipe, arguments)
            return
        command, report = list(command_line()), report_for(None)
        dense = words = None
        if args.shards is not False:
            required = args.shards is True
            dense = export_by_shards(recipe, args.out, arguments, command, report, required=required)
        if dense is None:
            asked = arguments | _layers_on(args)
            source = CalibrationSource(include_path=args.include_path)
            dense, words = export_recipe(recipe, args.out, asked, source, command, report)
        print(f"{args.recipe} on {args.model_args['pretrained']}: written to {args.out}")
        if words:
            print(words)
        if dense:
            print(
                f"{dense} {'layer' if dense == 1 else 'layers'} of two low-rank ones in the recipe: written as their"
                " product, since plain transformers has no place for factors; --format factored keeps them"
            )


def _layers_on(args: argparse.Namespace) -> dict[str, Any]:
    return {} if args.layers_on is None else {"layers_on": args.layers_on}


def _export_factored(args: argparse.Namespace, recipe: Recipe, arguments: dict[str, Any]) -> None:
    from harness_ext.cli.config import command_line
    from harness_ext.runs.applied_model import CalibrationSource
    from harness_ext.runs.factored_export import Destination, export_factored_recipe, refuse_shards
    from harness_ext.runs.progress import report_for

    refuse_shards(args.shards)
    to = Destination(args.out, args.format)
    asked = arguments | _layers_on(args)
    source = CalibrationSource(include_path=args.include_path)
    written = export_factored_recipe(recipe, to, asked, source, list(command_line()), report_for(None))
    layers = "1 layer" if written.layers == 1 else f"{written.layers} layers"
    print(f"{args.recipe} on {args.model_args['pretrained']}: written to {args.out}, {layers} as low-rank ones")
    if written.rounded:
        are = "rank of 1 matrix is" if written.rounded == 1 else f"ranks of {written.rounded} matrices are"
        print(
            f"the {are} rounded down (receipt.json has what was asked for, as rank_asked): factored=always without"
            " keep.align keeps what was asked for"
        )
    print("to load it with transformers, `import harness_ext` first; `lm_eval run --model hf` scores it as it is")
