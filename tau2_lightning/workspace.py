"""Lays the W&B workspace of a project out: sections and plots in the order in which one looks at them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, InfrastructureFault, Violation
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exit import exit_code, leave
from tau2_lightning.telemetry.layout import Chapter, as_data, layout, score_names

ABOUT = """Save a view of a W&B project with the numbers of a run in the order of docs/screen.md.

The words are those of the runs: their domains and splits name the numbers, logger.project and logger.entity the
project. Runs are grouped by experiment, the seeds of one together.
"""
STEP = "trainer/global_step"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry. Returns the exit code: 0 saved or printed, 1 W&B refused it, 2 bad configuration."""
    return exit_code(lambda: _main(_parser().parse_intermixed_args(argv)))


def _main(options: argparse.Namespace) -> int:
    config = load_config(options.words, check=False)
    if options.json:
        print(json.dumps(as_data(layout(config)), indent=2))
        return 0
    workspace = as_workspace(config, options.name)
    try:
        workspace.save()
    except Exception as error:  # whatever W&B and the network raise
        problem = f"the view was not saved: {type(error).__name__}: {error}. --json prints the layout"
        raise InfrastructureFault("W&B", "refused", problem) from error
    print(workspace.url)
    return 0


def as_workspace(config: RunConfig, name: str) -> Any:
    """The layout as a ``wandb_workspaces.workspaces.Workspace``, which is not saved yet.

    Raises ConfigError without that package, a project or an entity.
    """
    try:
        from wandb_workspaces import expr
        from wandb_workspaces import workspaces as ws
        from wandb_workspaces.reports import v2 as wr
    except ImportError as error:
        remedy = 'Install it with: pip install "tau2-lightning[workspace]"; --json prints the layout without it'
        raise ConfigError([Violation("wandb-workspaces", "", "is not installed", remedy)]) from error
    project, entity = config.logger.project, config.logger.entity
    missing = [key for key, value in (("logger.project", project), ("logger.entity", entity)) if not value]
    if missing:
        raise ConfigError([Violation(key, None, "names the project of the view", "Set it") for key in missing])
    scores = (f"{name}.max" for name in score_names(config))  # as RunWandb defines their summary
    columns = [f"summary:{one}" for one in ("best/pass^1", "change/pass^1", *scores)]
    return ws.Workspace(
        entity=str(entity),
        project=str(project),
        name=name,
        sections=[_section(ws, wr, chapter) for chapter in layout(config)],
        settings=ws.WorkspaceSettings(x_axis=STEP),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Metric("Group")], pinned_columns=["run:displayName", *columns, "config:seed"]
        ),
    )


def _section(ws: Any, wr: Any, chapter: Chapter) -> Any:
    """W&B draws the interval of a value from curves of its own: grouped runs have a band of their own already."""
    panels = [wr.LinePlot(title=plot.title, x=STEP, y=list(plot.names)) for plot in chapter.plots]
    return ws.Section(name=chapter.title, panels=panels, is_open=chapter.first)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tau2_lightning.workspace",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="the words of the runs")
    parser.add_argument("--name", default="tau2_lightning", help="the name of the view (default tau2_lightning)")
    parser.add_argument("--json", action="store_true", help="print the layout, and ask W&B for nothing")
    return parser


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
