"""``recbole-ilrec VERB``: the command line, RecBole's way: ``--key=value`` for every setting.

Prints nothing but errors itself; imports torch and RecBole only when a verb runs, so that ``--help`` is quick.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from recbole_ilrec.configuration.arguments import Arguments, parse
from recbole_ilrec.errors import UserError, did_you_mean, unknown_name
from recbole_ilrec.runs.result_file import check_result_file, write_result
from recbole_ilrec.runtime.imports import quick_imports
from recbole_ilrec.runtime.interrupts import Interrupted, raised
from recbole_ilrec.runtime.plain_log import plain_log
from recbole_ilrec.verbs import compare, doctor, estimate, inspect, recommend, report, search
from recbole_ilrec.verbs import table as table_verb

USAGE_ERROR, INTERRUPTED, NOT_READ = 2, 130, 141

HELP = """usage: recbole-ilrec VERB [--key=value ...]   (or: python -m recbole_ilrec VERB, python run_recbole_ilrec.py)

verbs
  run        train a model on a dataset and evaluate it
  estimate   what a run will take here, before it is started
  prepare    make a dataset from raw files
  table      a table of the paper, its missing runs made first
  figure     a figure of the paper, likewise
  recommend  what a trained model recommends, to its users or new ones
  inspect    why this item: one answer, token by token and layer by layer
  export     write a run's model as a folder for transformers and peft
  doctor     check data, split, identifiers and prompts before a run
  compare    compare two runs user by user
  search     choose settings on validation
  report     all runs with tables, figures, curves and costs as one HTML page

recbole-ilrec VERB --help shows the options of a verb.
"""

FIRST_RUN = ("ILRec", "ml-100k")
"""Model and dataset of ``run`` where it is given neither, nor a file of settings."""

RUN_HELP = """usage: recbole-ilrec run [--model=MODEL --dataset=DATASET] [--key=value ...]

Trains a model and evaluates it; without model, dataset and config files ILRec on ml-100k.

  -m, --model=MODEL          ILRec, LCRec, BIGRec, DPO, SDPO, RosePO, SPRec, a baseline that only counts (Pop,
                             Transitions), a sequential model of RecBole (SASRec, GRU4Rec, BERT4Rec, Caser, ...), or
                             your own class as module:Class
  -d, --dataset=DATASET      a folder in --data_path (default: dataset/), or ml-100k, which comes with RecBole
  --config_files="a.yaml b.yaml"
                             YAML files of settings, separated by blanks or commas; later ones win
  --result_file=PATH         write the result as JSON; --json=PATH is the same, as in other verbs
  --print_config             show every setting with its origin and stop
  --resume_from_checkpoint=DIR
                             go on with an interrupted run; =auto finds the newest run of the same settings and data,
                             so that the same command can be repeated until it is done
  --debug                    show the traceback of an error

Any setting of RecBole and of this package is an option, --key=value or --key value, its value read as YAML:
  --epochs=20 --learning_rate=1e-3 --topk=[5,10] --device=cpu --seed=1
  --backbone=tiny --k=3 --alpha=0.8 --beta=0.1 --lambda=0.01 --mu=0.005 --num_beams=20 --decode.renormalise=true
  --tasks=[seqrec,item2index,index2item,fusionseqrec]
docs/settings.md lists them. Precedence: command line, config files, properties/ of this package, RecBole's defaults.

examples
  recbole-ilrec run --model=SASRec --dataset=ml-100k --epochs=5
  recbole-ilrec run --model=ILRec --dataset=ml-100k --result_file=result.json
"""

PREPARE_HELP = """usage: recbole-ilrec prepare NAME --source=SOURCE [--path=DIR] [--out=dataset]

  NAME                       the dataset's name: your own, or e.g. Instrument, Art, Game
  --source=clicks|lcrec|amazon18|sdpo
                             what the raw files are: your own NAME.csv (or .tsv, .jsonl, .parquet) with columns user_id,
                             item_id and timestamp, beside it NAME.items.csv with item_id and title; LC-Rec's JSON
                             files; Amazon Reviews 2018; or S-DPO's JSON files of choices among candidates
                             (--task=candidates)
  --path=DIR                 the folder with the raw files; without it they are downloaded, where that is allowed
  --out=DIR                  the folder of datasets; the result is DIR/NAME
"""

EXPORT_HELP = """usage: recbole-ilrec export RUN --out=DIR [--merge=true]
       recbole-ilrec export --dataset=DATASET --out=DIR [--key=value ...]

  RUN                        the folder of a run of a language model, as --checkpoint_dir keeps it
  --out=DIR                  the folder to make: weights or adapter, tokenizer, catalogue, trie, prompt, model
                             card, golden lists
  --merge=true               fold an adapter into the weights
  -d, --dataset=DATASET      write a data set in place of a run: its sequences, texts and semantic IDs as LC-Rec's
                             X.inter.json, X.item.json and X.index.json; settings that filter its rows, and
                             --index_file, as for run
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit status: 0 done, 2 something to correct, 130 or 143 interrupted, 141 not read on.

    The last line on stderr is then ``error: what, where, what is allowed, how to fix it``. With ``--debug`` the
    traceback is shown before it.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = any(token == "--debug" or token.lower() == "--debug=true" for token in argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a title may hold what the console's encoding does not
        sys.stdout.reconfigure(errors="replace")
    try:
        with raised():
            status = _dispatch(list(argv))
        sys.stdout.flush()
        return status
    except UserError as error:
        return _fail(str(error), debug)
    except KeyboardInterrupt as stop:
        again = " with --resume_from_checkpoint=auto" if argv[:1] == ["run"] else ""
        how = str(stop) or f"what was finished is kept; give the same command again{again}"
        sys.stderr.write(f"\ninterrupted: {how}\n")
        return stop.status if isinstance(stop, Interrupted) else INTERRUPTED
    except BrokenPipeError:  # whoever reads has seen enough: recbole-ilrec ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOT_READ
    except OSError as error:
        place = f" ({error.filename})" if error.filename and str(error.filename) not in str(error) else ""
        return _fail(f"the system refused: {error}{place}. Check the path, its permissions and the free space.", debug)


def _fail(message: str, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return USAGE_ERROR


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(HELP)
        return 0
    verb, rest = argv[0], argv[1:]
    if verb in ("-V", "--version"):
        from recbole_ilrec import __version__

        sys.stdout.write(f"recbole-ilrec {__version__}\n")
        return 0
    if verb.startswith("-"):
        raise UserError(f"The first word must be a verb: recbole-ilrec run {verb} ... Verbs: {', '.join(VERBS)}.")
    if verb not in VERBS:
        raise unknown_name("verb", verb, VERBS)
    if verb != "run" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set, as torchrun does for each of several processes, and "
            f"'{verb}' works in one: start it without torchrun, or run 'unset WORLD_SIZE RANK' before."
        )
    command, text = VERBS[verb]
    arguments = parse(rest)
    if arguments.take("help"):
        sys.stdout.write(text)
        return 0
    arguments.take("debug")
    return command(arguments)


def run(arguments: Arguments) -> int:
    """The verb ``run``."""
    files = arguments.config_files()
    result_file = arguments.take("result_file", arguments.take("json"))
    target = Path(result_file) if result_file is not None else None
    if target is not None:
        check_result_file(target)
    show = arguments.take("print_config")
    from recbole_ilrec.runtime.compat import require_recbole

    require_recbole()
    with quick_imports():
        from recbole_ilrec import quick_start
        from recbole_ilrec.configuration.config import Config

    model, dataset = arguments.take("model"), arguments.take("dataset")
    if model is None and dataset is None and not files:
        model, dataset = FIRST_RUN
    if show:
        sys.stdout.write(Config(model, dataset, files, arguments.options).describe() + "\n")
        return 0
    result = quick_start.run(quick_start.configure(model, dataset, files, arguments.options))
    if target is not None and int(os.environ.get("RANK", "0")) == 0:
        write_result(target, result)
    return 0


@plain_log()
def prepare(arguments: Arguments) -> int:
    """The verb ``prepare``."""
    known = ("source", "path", "out")
    for key in arguments.options:
        if key not in known:
            options = ", ".join(f"--{name}" for name in known)
            raise UserError(f"Unknown option '--{key}' of prepare. {did_you_mean(key, known)}Available: {options}.")
    if len(arguments.words) != 1:
        raise UserError("prepare takes one dataset name: recbole-ilrec prepare NAME --source=lcrec --path=DIR.")
    from recbole_ilrec.preparation.source import SOURCES

    source = arguments.take("source")
    if source is None:
        raise UserError(f"--source is missing: give --source={' or --source='.join(SOURCES)}.")
    from recbole_ilrec.preparation.pipeline import prepare as prepare_dataset

    prepared = prepare_dataset(arguments.words[0], source, arguments.take("path"), arguments.take("out", "dataset"))
    sys.stdout.write(prepared.summary + "\n")
    return 0


@plain_log()
def export(arguments: Arguments) -> int:
    """The verb ``export``."""
    out, dataset = arguments.take("out"), arguments.take("dataset")
    if dataset is not None:
        return _export_data(arguments, dataset, out)
    merge = arguments.take("merge", False)
    if arguments.options:
        raise unknown_name("option of export", next(iter(arguments.options)), ["out", "merge", "dataset"])
    if len(arguments.words) != 1 or out is None or not isinstance(merge, bool):
        raise UserError("export takes a run and a new folder: recbole-ilrec export RUN --out=DIR [--merge=true].")
    from recbole_ilrec.runtime.compat import require_recbole

    require_recbole()
    with quick_imports():
        from recbole_ilrec.runs.export import export_run

    sys.stdout.write(f"{export_run(Path(arguments.words[0]), Path(out), merge=merge)}\n")
    return 0


def _export_data(arguments: Arguments, dataset: str, out: str | None) -> int:
    if arguments.words or out is None:
        raise UserError("export takes a data set and a new folder: recbole-ilrec export --dataset=NAME --out=DIR.")
    from recbole_ilrec.runtime.compat import require_recbole

    require_recbole()
    with quick_imports():
        from recbole_ilrec.quick_start import configure
        from recbole_ilrec.runs.data_export import export_data

    shortest = {"topk": [1], "valid_metric": "Hit@1"}  # nothing is ranked, and there may be few items
    options = {**shortest, **arguments.options}
    config = configure(arguments.take("model", "Pop"), dataset, arguments.config_files(), options)
    sys.stdout.write(f"{export_data(config, Path(out))}\n")
    return 0


VERBS: dict[str, tuple[Callable[[Arguments], int], str]] = {
    "run": (run, RUN_HELP),
    "estimate": (estimate.estimate, estimate.HELP),
    "prepare": (prepare, PREPARE_HELP),
    "table": (table_verb.table, table_verb.TABLE_HELP),
    "figure": (table_verb.figure, table_verb.FIGURE_HELP),
    "recommend": (recommend.recommend, recommend.HELP),
    "inspect": (inspect.inspect, inspect.HELP),
    "export": (export, EXPORT_HELP),
    "doctor": (doctor.doctor, doctor.HELP),
    "compare": (compare.compare, compare.HELP),
    "search": (search.search, search.HELP),
    "report": (report.report, report.HELP),
}
"""Verb -> what it does, its help."""
