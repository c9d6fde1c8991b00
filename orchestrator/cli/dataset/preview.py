"""`tahoe data preview`: training images as the network sees them, epoch beneath epoch."""

import argparse
from pathlib import Path


def add_data_verbs(parser: argparse.ArgumentParser) -> None:
    """Add the verbs below `tahoe data`; each sets `call` to what is to be run."""
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, dest="verb")
    about = "draw training images as the network sees them, beside the stored ones"
    verb = verbs.add_parser("preview", help=about, description=about)
    verb.add_argument("overrides", nargs="*", metavar="OVERRIDES", help="as for `tahoe train`")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="PNG", help="to write")
    verb.add_argument("--num", type=int, default=8, help="images (default %(default)s)")
    verb.add_argument("--epochs", type=int, default=6, help="views of each (default %(default)s)")
    verb.set_defaults(call=preview)


def preview(options: argparse.Namespace) -> int:
    """Draw the sheet of a config; return the exit code.

    Raises:
        ConfigError, DataError: the config cannot be run on its data set.
    """
    from orchestrator.cli.dataset.render import save
    from orchestrator.config.parse import ConfigError
    from orchestrator.evaluation.augmented_views import draw_augmented_views
    from orchestrator.launch.compose import compose

    points = compose(options.overrides)
    if len(points) != 1 or min(options.num, options.epochs) < 1:
        raise ConfigError(
            f"a preview shows one config, and {len(points)} were given, with --num {options.num} "
            f"and --epochs {options.epochs}: there is nothing to draw. Give overrides as for one "
            "`tahoe train`, and at least one image and epoch."
        )
    save(draw_augmented_views(points[0].config, options.num, options.epochs), options.output)
    return 0
