"""The verbs ``table`` and ``figure``: a plan of runs, made as far as they are missing, and what is printed of them."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_ilrec.configuration.arguments import Arguments
from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation.files import require_writable, write_atomically
from recbole_ilrec.report.record import append_record
from recbole_ilrec.report.results import between_marks
from recbole_ilrec.report.table import FORMATS, Table, markdown
from recbole_ilrec.runtime.plain_log import plain_log
from recbole_ilrec.verbs.asked import Asked

if TYPE_CHECKING:
    from recbole_ilrec.report.figure import Picture
    from recbole_ilrec.verbs.experiments import Experiments, Outcome
    from recbole_ilrec.verbs.tables import Grid

logger = logging.getLogger(__name__)

_OPTIONS = """
  --dataset=A,B              datasets in place of the plan's
  --models=A,B               only these lines: labels or names of models; '["A, long",B]' where one has commas
  --columns=A,B              only these columns of the plan, e.g. --columns=LC-Rec
  --backbone=A,B             backbones side by side
  --seeds=3                  so many, from the plan's first on; or a list of them: --seeds=1,2,3 or --seeds=[7].
                             A run for each; the table then shows mean and deviation
  --quick                    a few steps on few users, only to see that all works; said so in the caption
  --dry_run                  show the runs with what like ones took, here or where this was made, and stop
  --jobs=N                   runs at a time, which share the cores; default: one on each GPU, without one as many as
                             there are cores and 4 GB of free memory (preference models and the supervised run that
                             they begin from go one after another)
  --checkpoint_dir=saved     where runs and their records are; what is there is reused by content
  --out=tables               folder of the results
  --archive=FILE             also keep the runs in one small file, places of the true items included
  --from_archive=FILE,FILE   only what stands in such files: no data, no runs; what is missing stays empty
  --into=PAGE.md             also put the table into a page, between <!-- NAME:begin --> and <!-- NAME:end -->;
                             --into=PAGE.md#OTHER between the lines of that name, where a page has several tables;
                             the table of --against between <!-- NAME-against:begin --> and <!-- NAME-against:end -->
  --KEY=VALUE                any other setting, for every run (docs/settings.md)

Finished runs are reused, interrupted ones are gone on with: give the same command again. A run that fails is shown as
failed with its error and does not stop the others. docs/tables.md has more.
"""

TABLE_HELP = f"""usage: recbole-ilrec table NAME [--key=value ...]

Writes NAME.md, NAME.tex (booktabs), NAME.csv and NAME-runs.csv (each run's certificate), and prints the first.

  NAME                       main, ablation, datasets, cf-models, efficiency, sensitivity (Tables 1 to 6 of the paper),
                             readings (of its equations), the name of a figure, or the path of a plan of your own
  --paper                    the numbers printed in the paper too, as a second table
  --against=LINE             a second table: each line minus this one, seed by seed, on the test part and on validation
{_OPTIONS}"""

FIGURE_HELP = f"""usage: recbole-ilrec figure NAME [--key=value ...]

Writes NAME.png and NAME.svg, the numbers behind them as NAME.csv, and each run's certificate as NAME-runs.csv.

  NAME                       layer-losses, backbones, layers, candidates (Figures 2, 4, 5 and 6 of the paper), or the
                             path of a plan of your own (.yaml) that has a figure
{_OPTIONS}"""


def table(arguments: Arguments) -> int:
    """The verb ``table``."""
    return _Command(Asked(arguments, "table")).run()


def figure(arguments: Arguments) -> int:
    """The verb ``figure``."""
    return _Command(Asked(arguments, "figure")).run()


def asked_before(asked: Mapping[str, Any], checkpoint_dir: Path) -> "list[tuple[Table, Picture | None]]":
    """What an earlier call of ``table`` or ``figure`` would print now, without making a run: its tables, one or two.

    Args:
        asked: its line in ``planned/asked.jsonl``.
        checkpoint_dir: where its runs are.

    Raises:
        UserError: the plan is gone, or none of its runs is there.
    """
    options = {**asked["options"], "checkpoint_dir": str(checkpoint_dir)}
    return _Command(Asked(Arguments(list(asked["words"]), options), asked["verb"])).found()


class _Command:
    """The steps of one call of a verb."""

    def __init__(self, asked: Asked):
        self.asked, self.plan, self.quick = asked, asked.plan, asked.quick
        self.given = dict(asked.given)

    @plain_log()
    def run(self) -> int:
        """0, or 1 when a run failed."""
        from recbole_ilrec.runtime.compat import require_recbole

        require_recbole()
        require_writable(self.asked.out, f"out={self.asked.out}")
        if self.asked.into is not None:  # asked now: the runs may take days
            self._page(dict.fromkeys(self._marks(), ""))
        if self.asked.archive is not None:
            require_writable(self.asked.archive.parent, f"archive={self.asked.archive}")
        from recbole_ilrec.verbs.experiments import ASKED, PLANNED, default_jobs
        from recbole_ilrec.verbs.printed import paper_table, printed_counts
        from recbole_ilrec.verbs.progress import OutcomeLog, dry_run, refuse_hopeless
        from recbole_ilrec.verbs.tables import Grid, refuse_uncomputed

        whole = self.asked.whole
        printed = printed_counts(self.plan) if self.plan.kind == "datasets" else paper_table(self.plan, whole)
        if self.asked.paper and printed is None:
            raise UserError(f"The paper prints no numbers for this part of '{whole.name}': leave --paper out.")
        experiments, grid = self._experiments(), Grid(self.plan, self.given)
        if self.asked.sources:
            return self._write(grid, self._archived(grid), printed)
        if self.plan.kind == "datasets":
            return self._datasets(grid, experiments, printed)
        outcomes = self._outcomes(grid, experiments)
        missing = [run for run, outcome in outcomes.items() if outcome.record is None and not outcome.error]
        if missing:
            refuse_uncomputed(self.plan, list(outcomes), experiments)
        if self.asked.dry_run:
            sys.stdout.write(dry_run(outcomes, experiments))
            return int(any(outcome.error for outcome in outcomes.values()))
        outcomes |= experiments.prepare(missing)
        refuse_hopeless(f"{self.asked.verb} {self.plan.name}", outcomes)
        missing = [run for run in missing if not outcomes[run].error]
        append_record(experiments.root / PLANNED / ASKED, self.asked.call)
        logger.info("%d runs, %d of them are there already", len(outcomes), len(outcomes) - len(missing))
        jobs = self.asked.jobs or (1 if "time" in self.plan.metrics else default_jobs())  # side by side is slower
        experiments.make(missing, jobs, OutcomeLog(len(missing), outcomes))
        return self._write(grid, outcomes, printed)

    def _archived(self, grid: "Grid") -> "dict[Any, Outcome]":
        from recbole_ilrec.verbs.archive import read_archive
        from recbole_ilrec.verbs.experiments import Outcome

        kept = {k: v for source in self.asked.sources for k, v in read_archive(source, quick=self.quick).items()}
        outcomes = {run: kept.get(str(run), Outcome()) for run in grid.all_runs()}
        if not any(outcome.record for outcome in outcomes.values()):
            files = ", ".join(map(str, self.asked.sources))
            raise UserError(f"{files} holds none of the {len(outcomes)} runs, e.g. '{next(iter(outcomes))}'.")
        return outcomes

    def found(self) -> "list[tuple[Table, Picture | None]]":
        """Each table, and the picture where the verb was ``figure``, from the runs there are; none is made.

        Raises:
            UserError: no run of the plan is there, or those there are lack what the picture shows.
        """
        from recbole_ilrec.verbs.figures import picture
        from recbole_ilrec.verbs.tables import Grid, results_table

        experiments, grid = self._experiments(), Grid(self.plan, self.given)
        outcomes = self._outcomes(grid, experiments)
        if not any(outcome.record for outcome in outcomes.values()):
            raise UserError(f"{self.asked.verb} {self.plan.name}: none of its {len(outcomes)} runs is there.")
        made = results_table(grid, outcomes, quick=self.quick)
        drawn = picture(grid, made, outcomes) if self.asked.verb == "figure" else None
        return [(made, drawn), *((table, None) for table in self._differences(grid, outcomes))]

    def _experiments(self) -> "Experiments":
        from recbole_ilrec.configuration.outcome import OUTCOME_FREE
        from recbole_ilrec.verbs.experiments import Experiments

        places = {key: self.given.pop(key) for key in list(self.given) if key in OUTCOME_FREE}
        return Experiments(places, quick=self.quick)

    @staticmethod
    def _outcomes(grid: "Grid", experiments: "Experiments") -> "dict[Any, Outcome]":
        finished = experiments.finished()
        return {run: experiments.outcome(run, finished) for run in grid.all_runs()}

    def _write(self, grid: "Grid", outcomes: "dict[Any, Outcome]", printed: Table | None) -> int:
        from recbole_ilrec.verbs.certificates import certificates
        from recbole_ilrec.verbs.tables import results_table

        made = results_table(grid, outcomes, quick=self.quick)
        tables = [made, *self._differences(grid, outcomes)]
        if self.asked.verb == "figure":
            from recbole_ilrec.report.figure import draw, points
            from recbole_ilrec.verbs.figures import picture

            drawn = picture(grid, made, outcomes)  # curves are of other numbers than the table's
            self._save(made.name, {"csv": points(drawn) if drawn.kind == "curves" else FORMATS["csv"](made)})
            for path in draw(drawn, self.asked.out):
                logger.info("%s", path)
        else:
            for each in tables:
                self._save(each.name, _texts(each))
        self._save(f"{made.name}-runs", {"csv": certificates(grid, outcomes)})
        if self.asked.archive is not None:
            from recbole_ilrec.verbs.archive import write_archive

            write_archive(self.asked.archive, outcomes, quick=self.quick)
        self._show(*tables)
        self._paper(printed)
        return int(any(outcome.error for outcome in outcomes.values()))

    def _differences(self, grid: "Grid", outcomes: "dict[Any, Outcome]") -> list[Table]:
        if self.asked.against is None:
            return []
        from recbole_ilrec.verbs.differences import differences_table

        return [differences_table(grid, outcomes, self.asked.against, quick=self.quick)]

    def _show(self, *tables: Table) -> None:
        """Put tables into the page that was asked for, and on the screen."""
        texts = [*map(markdown, tables)]
        if self.asked.into is not None:
            page = self._page(dict(zip(self._marks(), texts, strict=True)))
            with write_atomically(self.asked.into) as stream:
                stream.write(page)
        sys.stdout.write("\n".join(texts))

    def _marks(self) -> list[str]:
        """Between which lines of the page each table belongs."""
        return [self.asked.mark, *([f"{self.asked.mark}-against"] if self.asked.against is not None else [])]

    def _page(self, contents: Mapping[str, str]) -> str:
        """The page with ``contents`` in the places of these marks."""
        path = self.asked.into
        assert path is not None
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"into={path} cannot be read: {error.strerror}.") from None
        for mark, content in contents.items():
            text = between_marks(text, mark, content)
        return text

    def _datasets(self, grid: "Grid", experiments: "Experiments", printed: Table | None) -> int:
        from recbole_ilrec.verbs.tables import datasets_table

        made = datasets_table(grid, experiments)
        self._save(made.name, _texts(made))
        self._show(made)
        self._paper(printed)
        return int(bool(made.notes))

    def _paper(self, printed: Table | None) -> None:
        if self.asked.paper and printed is not None:
            self._save(printed.name, _texts(printed))
            sys.stdout.write("\n" + markdown(printed))

    def _save(self, name: str, texts: Mapping[str, str]) -> None:
        """Write the text of each suffix."""
        self.asked.out.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            path = self.asked.out / f"{name}.{suffix}"
            with write_atomically(path) as stream:
                stream.write(text)
            logger.info("%s", path)


def _texts(made: Table) -> dict[str, str]:
    return {suffix: written(made) for suffix, written in FORMATS.items()}
