"""What LC-Rec's alignment tasks read: item texts of the data set, and its file of users where a task needs one."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recbole_ilrec.configuration.presets import properties_folder
from recbole_ilrec.errors import UserError
from recbole_ilrec.identifiers.title import TITLE_FIELDS, clean_title
from recbole_ilrec.preparation.user_texts import SUFFIX, UserRecord, user_records
from recbole_ilrec.prompt.task_template import TaskTemplates, load_task_templates
from recbole_ilrec.prompt.tasks import AlignmentTexts, UserTexts
from recbole_ilrec.settings import SEQREC

logger = logging.getLogger(__name__)

NEED_ITEMS = ("item2index", "index2item", "fusionseqrec")
NEED_USERS = ("itemsearch", "preferenceobtain")


@dataclass(frozen=True)
class Alignment:
    """The tasks of a run beside sequential recommendation.

    Attributes:
        templates: their prompts.
        data: texts of items and users.
    """

    templates: TaskTemplates
    data: AlignmentTexts

    @property
    def texts(self) -> list[str]:
        """All text that rows may hold, to train a tokenizer on."""
        return [*self.templates.texts, *self.data]

    @cached_property
    def key(self) -> str:
        """SHA-256 of prompts and texts: names what is trained on them."""
        what = [self.templates.separator, *(repr(prompt) for prompt in self.templates.prompts.items())]
        what += [*self.data.titles, *self.data.descriptions, *map(repr, self.data.users.items())]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def alignment_of(config: Any, dataset: Any) -> Alignment | None:
    """Prompts and texts of the tasks beside ``seqrec`` that ``tasks`` names; ``None`` when there are none.

    Raises:
        UserError: another paradigm than ``lcrec``, a bad template, no texts or no user file where a task needs them.
    """
    settings = config.settings.alignment
    tasks = tuple(task for task in settings.tasks if task != SEQREC)
    if not tasks:
        return None
    if config.settings.paradigm != "lcrec":
        raise UserError(
            f"tasks={list(settings.tasks)} tie semantic IDs to language, and paradigm={config.settings.paradigm} has "
            "none: use --paradigm=lcrec, or --tasks=[seqrec]."
        )
    templates = load_task_templates(settings.template, properties_folder() / "prompt" / "tasks", tasks)
    titles = tuple(_first(fields, TITLE_FIELDS) for fields in dataset.item_texts)
    descriptions = tuple(_first(fields, ("description",)) for fields in dataset.item_texts)
    textual = [task for task in tasks if task in NEED_ITEMS]
    if textual and not any(titles + descriptions):
        raise UserError(
            f"dataset '{config['dataset']}' has no item texts, which tasks={textual} need: no field "
            f"{', '.join((*TITLE_FIELDS, 'description'))} of {config['dataset']}.item holds text. Put that file beside "
            "the data with a column title:token_seq, or leave these tasks out."
        )
    told = [task for task in tasks if task in NEED_USERS]
    users = _users(config, dataset, told) if told else {}
    if not textual:
        titles = descriptions = ("",) * len(titles)
    return Alignment(templates, AlignmentTexts(titles, descriptions, users))


def _first(fields: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((text for name in names if (text := clean_title(fields.get(name, "")))), "")


def _users(config: Any, dataset: Any, tasks: list[str]) -> dict[int, UserTexts]:
    path = Path(config["data_path"]) / f"{config['dataset']}{SUFFIX}"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist, and tasks={tasks} need it: LC-Rec's file of user preferences and intentions "
            "(X.user.json). Put it there, or leave these tasks out of --tasks."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON in UTF-8 ({error}): copy the file again.") from None
    records = user_records(path, content, need_intentions="itemsearch" in tasks)
    users, items = dataset.field2token_id[dataset.uid_field], dataset.field2token_id[dataset.iid_field]
    found = {users[user]: _texts_of(record, items) for user, record in records.items() if user in users}
    if not found:
        raise UserError(
            f"{path} names no user of dataset '{config['dataset']}': its keys must be the user ids of the .inter file."
        )
    logger.info("%s: texts of %d of %d users", path, len(found), len(users) - 1)
    return found


def _texts_of(record: UserRecord, items: Mapping[str, int]) -> UserTexts:
    preferences = tuple(filter(None, map(clean_title, record.preferences)))
    wish, like = ((text,) if text else () for text in map(clean_title, record.queries))
    return UserTexts(preferences, items.get(record.item, 0), wish, like)
