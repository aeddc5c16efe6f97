"""Checks of what a model reads of items: titles, identifiers, and prompts that may be too long."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from recbole_ilrec.checks.finding import Finding, Level, of, some_or_note

Array = np.ndarray
CEILINGS = (1, 10)
"""Numbers of places for which it is told what shared identifiers cost at least."""


def title_finding(titles: Sequence[str], *, needed: bool) -> Finding:
    """Items without a title, and items that share one.

    Args:
        titles: of items 1 .. I, ``""`` where there is none.
        needed: whether the model reads titles.
    """
    groups = Counter(title for title in titles if title)
    missing = len(titles) - groups.total()
    shared = sum(count for count in groups.values() if count > 1)
    numbers = {"missing": missing, "shared": shared, "distinct": len(groups)}
    if missing == len(titles):
        return Finding("items", "titles", Level.ATTENTION if needed else Level.OK, "no item has a title", numbers)
    text = f"{of(missing, len(titles))} items have no title, {of(shared, len(titles))} share theirs"
    if shared:
        title, count = groups.most_common(1)[0]
        text += f" (most: {count} items called '{title[:60]}')"
    level = some_or_note(missing + shared, len(titles))
    if not needed and level is not Level.OK:
        level = Level.NOTE
    if level is Level.ATTENTION:
        text += ": the model cannot tell the latter apart; mend the titles or use paradigm=lcrec"
    return Finding("items", "titles", level, text, numbers)


def identifier_finding(leaf: Array, targets: Array, source: str) -> Finding:
    """Items that share their identifier, and what is lost by it: a model can find an identifier, no item behind it.

    Args:
        leaf: ``[I + 1]`` number of each item's identifier; entry 0 (padding) is not looked at.
        targets: ``[R]`` true items of the test rows.
        source: where the identifiers come from.
    """
    group = np.bincount(leaf[1:])[leaf[1:]]
    shared = group > 1
    rows = int(shared[targets - 1].sum())
    numbers: dict[str, float] = {
        "items": len(group),
        "distinct": len(np.unique(leaf[1:])),
        "shared": int(shared.sum()),
        "rows": rows,
    }
    if not shared.any():
        return Finding("items", "identifiers", Level.OK, f"every item has its own ({source})", numbers)
    text = (
        f"{of(int(shared.sum()), len(group))} items share theirs (largest group {int(group.max())}), among them the "
        f"true item of {of(rows, len(targets))} test rows ({source})"
    )
    for k in CEILINGS:  # under the expected rank, of a model that finds the right identifier for everybody
        numbers[f"hit@{k} at most"] = round(float(np.minimum(1, k / group[targets - 1]).mean()), 4)
    if rows:
        best = ", ".join(f"Hit@{k} {numbers[f'hit@{k} at most']:.4f}" for k in CEILINGS)
        text += f", so no model can be above {best} (collisions=expected)"
    level = some_or_note(int(shared.sum()), len(group))
    if level is Level.ATTENTION:
        text += ": report the metrics under all collision policies, or mend the identifiers"
    return Finding("items", "identifiers", level, text, numbers)


def lost_token_finding(lost: Array) -> Finding:
    """Identifiers that are cut.

    Args:
        lost: ``[I]`` tokens that each item's identifier has lost.
    """
    cut = int((lost > 0).sum())
    numbers = {"items": cut, "tokens": int(lost.sum())}
    if not cut:
        return Finding("items", "target tokens", Level.OK, "no identifier is cut: every token is trained on", numbers)
    text = f"{of(cut, len(lost))} identifiers lose {int(lost.sum()):,} tokens: raise bigrec.max_title_tokens"
    return Finding("items", "target tokens", some_or_note(cut, len(lost)), text, numbers)


def prompt_finding(left_out: Mapping[str, Array], max_length: int) -> Finding:
    """Prompts that are cut.

    Args:
        left_out: part of the split -> ``[R]`` items that do not fit into each row's prompt.
        max_length: tokens of a row at most.
    """
    cut = {name: int((count > 0).sum()) for name, count in left_out.items()}
    rows = {name: len(count) for name, count in left_out.items()}
    numbers = {f"{name}_rows": count for name, count in cut.items()}
    if not any(cut.values()):
        text = f"every history fits into prompt.max_length={max_length}"
        return Finding("prompts", "length", Level.OK, text, numbers)
    told = ", ".join(f"{of(cut[name], rows[name])} {name} rows" for name in cut)
    items = np.concatenate([count[count > 0] for count in left_out.values()])
    text = (
        f"prompt.max_length={max_length} cuts {told}, by {items.mean():.1f} of the oldest items on average: raise "
        "prompt.max_length or lower MAX_ITEM_LIST_LENGTH"
    )
    return Finding("prompts", "length", some_or_note(sum(cut.values()), sum(rows.values())), text, numbers)
