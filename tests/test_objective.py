"""Every objective keeps the contract, and ILRec equals the slow transcription of the paper under every switch."""

import math
from dataclasses import replace

import pytest
import torch

from recbole_ilrec.errors import UserError
from recbole_ilrec.objective import OBJECTIVES, Needs, blocks, build_objective
from recbole_ilrec.schema import LegalTokens, LossTerms
from recbole_ilrec.settings import ILRecSettings
from tests import reference
from tests.objective_cases import EOS, random_step

STRONG = {"alpha": 0.4, "beta": 0.5, "lambda_": 0.3, "mu": 0.4}
"""Weights under which every term shows in the total."""

SWITCHES = [
    {"k": 2},
    {"k": 0},
    {"k": 2, "layer_range": "k_plus_1"},
    {"alpha": 0.0},
    {"alpha": 1.0},
    {"alpha": math.inf},
    {"beta": 0.0},
    {"lambda_": 0.0},
    {"mu": 0.0},
    {"use_cpo": False},
    {"use_cpd": False},
    {"use_crr": False},
    {"negatives_from": "final"},
    {"ensemble": "sum"},
    {"ensemble": "mean_prob"},
    {"ensemble": "mean_logprob"},
    {"threshold_on": "logit"},
    {"tau_from": "final"},
    {"threshold_on": "logit", "tau_from": "final"},
    {"neg_scope": "item_tokens"},
    {"neg_scope": "legal"},
    {"max_negatives": 1},
    {"weight_from": "prob"},
    {"weight_from": "uniform"},
    {"penalty": "sign_safe"},
    {"penalty": "additive"},
    {"penalty": "log1p"},
    {"detach_weights": False},
    {"detach_weights": False, "negatives_from": "final"},
    {"detach_weights": False, "weight_from": "prob", "ensemble": "mean_prob"},
    {"detach_teacher": False},
    {"cpd_direction": "teacher_student"},
    {"cpd_direction": "js"},
    {"cpd_support": "item_tokens"},
    {"cpd_support": "legal"},
    {"cpd_support": "legal", "cpd_direction": "js"},
    {"cpd_support": "legal", "cpd_direction": "teacher_student"},
    {"cpd_layer_reduction": "mean"},
    {"cpd_layer_reduction": "mean", "detach_teacher": False},
    {"cpd_detach_head": True},
    {"cpd_detach_head": True, "detach_teacher": False},
    {"crr_scope": "legal"},
    {"crr_scope": "legal", "beta": 0.0},
    {"crr_scope": "legal", "neg_scope": "legal"},
    {"crr_label": "normalised"},
    {"crr_temperature": 0.3},
    {"r_truth_floor": 0.9},
    {"apply_to_eos": False},
]

SAME_AS_DEFAULT_IN_VALUE = ({"detach_weights": False}, {"detach_teacher": False}, {"cpd_detach_head": True},
                            {"cpd_detach_head": True, "detach_teacher": False})  # fmt: skip


def name_of(switch):
    return ",".join(f"{k}={v}" for k, v in switch.items()) or "default"


def slow(step, settings):
    layers = step.candidates[len(step.candidates) - settings.layers :]
    active = None if settings.apply_to_eos else (step.targets != EOS).tolist()
    items = set(step.item_tokens.nonzero().squeeze(1).tolist())
    return reference.ilrec(
        settings, step.final, layers, step.head, step.targets.tolist(), step.table, items, active=active
    )


@pytest.mark.parametrize("switch", [{}, *SWITCHES], ids=name_of)
def test_ilrec_equals_the_slow_reference_under_every_switch(switch):
    step = random_step(6, 11, seed=4)
    chosen = {**STRONG, **switch}
    terms, wanted = step.run(**chosen), slow(step, ILRecSettings(**chosen))
    torch.testing.assert_close(terms.total.double(), wanted["total"].detach(), atol=1e-5, rtol=1e-6, check_dtype=False)
    for part, weight in terms.weights.items():
        if weight:
            torch.testing.assert_close(terms.parts[part], wanted[part])
    for fast, exact in zip(step.gradients(terms.total), step.gradients(wanted["total"]), strict=True):
        torch.testing.assert_close(fast, exact)


EQUAL_TO_DEFAULT = ({"k": 2, "layer_range": "k_plus_1"}, {"ensemble": "mean_logprob"})
"""The former means k = 3; the mean of log-probabilities is the mean of logits up to a constant per row."""


@pytest.mark.parametrize("switch", [s for s in SWITCHES if s not in EQUAL_TO_DEFAULT], ids=name_of)
def test_every_switch_changes_the_loss_or_its_gradient(switch):
    step = random_step(12, 17, seed=2)
    default, changed = step.run(**STRONG), step.run(**{**STRONG, **switch})
    values = [float(terms.total.detach()) for terms in (default, changed)]
    if switch in SAME_AS_DEFAULT_IN_VALUE:
        assert values[0] == pytest.approx(values[1], abs=1e-5)
        pairs = zip(step.gradients(default.total), step.gradients(changed.total), strict=True)
        assert any(not torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    else:
        assert values[0] != pytest.approx(values[1], abs=1e-5)


def test_two_switches_are_other_words_for_the_default():
    step = random_step(12, 17, seed=2)
    for switch in EQUAL_TO_DEFAULT:
        torch.testing.assert_close(step.run(**STRONG, **switch).total, step.run(**STRONG).total)
    changed = step.run(**STRONG, ensemble="mean_logprob", threshold_on="logit").total
    assert not torch.isclose(changed, step.run(**STRONG, threshold_on="logit").total)


@pytest.mark.parametrize(("rows", "vocab"), [(1, 5), (3, 31), (47, 31), (3, 257)])
def test_float32_ilrec_equals_the_reference_over_odd_shapes(rows, vocab):
    step = random_step(rows, vocab, seed=rows, dtype=torch.float32)
    exact = random_step(rows, vocab, seed=rows, dtype=torch.float32)
    for leaf in exact.leaves:
        leaf.data = leaf.data.double()
    terms, wanted = step.run(**STRONG), slow(exact, ILRecSettings(**STRONG))
    for part, value in terms.parts.items():
        torch.testing.assert_close(value.double(), wanted[part].detach(), atol=1e-4, rtol=1e-5)
    for fast, slow_one in zip(step.gradients(terms.total), exact.gradients(wanted["total"]), strict=True):
        torch.testing.assert_close(fast.double(), slow_one, atol=1e-4, rtol=1e-4)


def test_bfloat16_states_stay_close_to_float32():
    half, full = (random_step(40, 31, seed=1, dtype=d) for d in (torch.bfloat16, torch.float32))
    losses = [step.run(**{**STRONG, "alpha": 0.0}) for step in (half, full)]
    assert losses[0].total.dtype == torch.float32
    for part in losses[0].parts:
        torch.testing.assert_close(losses[0].parts[part], losses[1].parts[part], rtol=0.03, atol=0.0)
    for a, b in zip(half.gradients(losses[0].total), full.gradients(losses[1].total), strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).norm() <= 0.05 * b.norm()


def test_autocast_reaches_every_gradient(monkeypatch):
    """Autocast keeps one copy of the head for products with and without gradient; several chunks share it."""
    monkeypatch.setattr(blocks, "BLOCK", {"cpu": 31 * 8})
    monkeypatch.setattr(blocks, "CHUNK_ROWS", 8)
    step, full = (random_step(40, 31, seed=1, dtype=torch.float32) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = step.run(**{**STRONG, "alpha": 0.0}).total
    exact = full.run(**{**STRONG, "alpha": 0.0}).total
    for a, b in zip(step.gradients(loss), full.gradients(exact), strict=True):
        assert (a - b).norm() <= 0.05 * b.norm()


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_objective_keeps_the_contract(name):
    """A finite scalar sum with gradient, one weight for each part, monitors without gradient, additive over tokens."""
    step = random_step(9, 13)
    objective = build_objective(name.upper(), ILRecSettings(), step.item_tokens, eos_id=EOS)
    assert isinstance(objective.needs, Needs)
    terms = step.run(name)
    assert isinstance(terms, LossTerms)
    assert terms.parts.keys() == terms.weights.keys()
    assert all(value.shape == () for value in (*terms.parts.values(), *terms.monitors.values()))
    assert not any(value.requires_grad for value in terms.monitors.values())
    assert terms.total.isfinite()
    assert step.gradients(terms.total)[0].abs().sum() > 0
    pieces = [step.rows(low, high).run(name) for low, high in ((0, 1), (1, 5), (5, 9), (9, 9))]
    for part, value in terms.parts.items():
        torch.testing.assert_close(value, sum(piece.parts[part] for piece in pieces))
    for monitor, value in terms.monitors.items():
        torch.testing.assert_close(value, sum(piece.monitors[monitor] for piece in pieces))


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_objective_does_not_change_its_inputs(name):
    step = random_step(5, 7)
    before = [x.detach().clone() for x in (*step.leaves, step.targets, step.legal.row, step.legal.reward)]
    step.run(name).total.backward()
    after = (*step.leaves, step.targets, step.legal.row, step.legal.reward)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_part_added_to_a_combined_loss_counts_and_a_changed_one_is_refused():
    step = random_step(9, 12)
    terms, gate = step.run(**STRONG), step.final.square().sum()
    plain, own = step.gradients(terms.total), step.gradients(0.5 * gate)
    by_hand = replace(terms, parts={**terms.parts, "gate": gate}, weights={**terms.weights, "gate": 0.5})
    for more in (terms.plus("gate", gate, 0.5), by_hand):
        torch.testing.assert_close(more.total, terms.total + 0.5 * gate.float())
        for found, before, added in zip(step.gradients(more.total), plain, own, strict=True):
            torch.testing.assert_close(found, before + added)
    changed = [
        replace(terms, weights={**terms.weights, "cpd": 0.9}),
        replace(terms, parts={**terms.parts, "cpd": 2 * terms.parts["cpd"]}),
        replace(terms, parts={name: part for name, part in terms.parts.items() if name != "cpd"}),
    ]
    for other in changed:
        with pytest.raises(UserError, match="loss part 'cpd' was changed, left out or given another weight"):
            other.total  # noqa: B018
    with pytest.raises(UserError, match="loss part 'crr' is there already"):
        terms.plus("crr", gate)


def test_needs_ask_for_no_more_than_the_settings_use():
    def needs(**settings):
        return build_objective("ilrec", ILRecSettings(**settings)).needs

    assert build_objective("sft", ILRecSettings()).needs == Needs(0, False, False)
    assert needs() == Needs(layers=3, legal=True, rewards=True)
    assert needs(k=2, layer_range="k_plus_1", mu=0) == Needs(layers=3, legal=False, rewards=False)
    assert needs(use_crr=False) == Needs(layers=3)
    assert needs(negatives_from="final", use_cpd=False, mu=0) == Needs()
    assert needs(beta=0, lambda_=0, mu=0) == Needs()
    assert needs(beta=0, lambda_=0, crr_scope="legal") == Needs(layers=0, legal=True, rewards=True)
    assert needs(mu=0, neg_scope="legal") == Needs(layers=3, legal=True)
    assert needs(mu=0, cpd_support="legal") == Needs(layers=3, legal=True)
    assert needs(mu=0, lambda_=0, cpd_support="legal", k=0) == Needs()


def test_what_a_user_can_get_wrong_is_one_clear_line():
    with pytest.raises(UserError, match="Did you mean 'ilrec'"):
        build_objective("ilerc", ILRecSettings())
    for name in ("neg_scope", "cpd_support"):
        with pytest.raises(UserError, match=f"ilrec.{name}=item_tokens"):
            build_objective("ilrec", ILRecSettings(**{name: "item_tokens"}))
    with pytest.raises(UserError, match="apply_to_eos"):
        build_objective("ilrec", ILRecSettings(apply_to_eos=False))


def test_what_a_caller_forgot_is_said():
    step = random_step(3, 7)
    objective = build_objective("ilrec", ILRecSettings(), step.item_tokens)
    with pytest.raises(ValueError, match="legal tokens"):
        objective(step.states(), step.batch(), None)
    with pytest.raises(ValueError, match="rewards"):
        objective(step.states(), step.batch(), LegalTokens(step.legal.row, step.legal.token))
    step.candidates.pop()
    with pytest.raises(ValueError, match="3 candidate layers"):
        objective(step.states(), step.batch(), step.legal)
