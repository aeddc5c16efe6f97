"""Losses over chosen and rejected answers: values by hand, laws, an independent float64 implementation."""

import math

import pytest
import torch

from recbole_ilrec.errors import UserError
from recbole_ilrec.objective import PREFERENCES, build_objective, build_preference
from recbole_ilrec.objective.preference import (
    answer_log_probs,
    dpo_loss,
    log_ratios,
    personalised_smoothing,
    smoothed_dpo_loss,
    softmax_dpo_loss,
    token_log_probs,
)
from recbole_ilrec.settings import ILRecSettings, PreferenceSettings

NONE = -math.inf


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_softmax_dpo_by_hand():
    """log(1 + e^(0.2-0.5) + e^(-0.1-0.5) + e^(0.4-0.5)) = log(1 + 0.740818 + 0.548812 + 0.904837) = log 3.194467."""
    assert softmax_dpo_loss(rows([0.5, 0.2, -0.1, 0.4]), beta=1.0).item() == pytest.approx(1.161420, abs=1e-6)


def test_dpo_by_hand():
    """-log sigma(0.5 - 0.2) = log(1 + e^-0.3) = log 1.740818; the mean with -log sigma(0.5 - 0.4) = 0.644397."""
    assert dpo_loss(rows([0.5, 0.2]), beta=1.0).item() == pytest.approx(0.554355, abs=1e-6)
    assert dpo_loss(rows([0.5, 0.2, 0.4]), beta=1.0).item() == pytest.approx((0.554355 + 0.644397) / 2, abs=1e-6)


def test_smoothed_dpo_by_hand():
    """l(.3) = .554355, l(-.3) = .854355: .8 * .554355 + .2 * .854355 = .614355; (.8 l - .2 l') / .6 = .454355."""
    pair, eps = rows([3.0, 0.0]), rows([0.2])
    assert smoothed_dpo_loss(pair, eps, beta=0.1).item() == pytest.approx(0.614355, abs=1e-6)
    assert smoothed_dpo_loss(pair, eps, beta=0.1, form="rdpo").item() == pytest.approx(0.454355, abs=1e-6)


def test_softmax_dpo_with_one_rejected_answer_is_dpo():
    ratios = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    assert torch.allclose(softmax_dpo_loss(ratios, beta=0.7), dpo_loss(ratios, beta=0.7), rtol=1e-12)


@pytest.mark.parametrize("form", ["cdpo", "rdpo"])
def test_no_smoothing_reduces_rosepo_to_dpo(form):
    ratios = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    smoothed = smoothed_dpo_loss(ratios, torch.zeros(50, 3).double(), beta=0.3, form=form)
    assert torch.allclose(smoothed, dpo_loss(ratios, beta=0.3))


def slowly(ratios, eps, beta, kind):
    """The published formulas with Python's numbers, one answer at a time; overflows where they do."""

    def log_sigma(x):
        return -math.log(1 + math.exp(-x))

    chosen, rejected = ratios[0], [(r, e) for r, e in zip(ratios[1:], eps, strict=True) if r > NONE]
    if kind == "sdpo":
        return -log_sigma(-math.log(sum(math.exp(beta * (r - chosen)) for r, _ in rejected))) if rejected else 0.0
    pairs = [(log_sigma(beta * (chosen - r)), log_sigma(beta * (r - chosen)), e) for r, e in rejected]
    total = 0.0
    for right, turned, e in pairs:
        if kind == "rdpo":
            total += -((1 - e) * right - e * turned) / (1 - 2 * e)
        else:
            e = e if kind == "cdpo" else 0.0
            total += -(1 - e) * right - e * turned
    return total / max(len(pairs), 1)


@pytest.mark.parametrize("kind", ["dpo", "sdpo", "cdpo", "rdpo"])
def test_losses_equal_the_formulas_in_python_numbers(kind):
    chance = torch.Generator().manual_seed(2)
    ratios = 3 * torch.randn(40, 5, dtype=torch.float64, generator=chance)
    ratios[3, 2], ratios[4, 1:], ratios[5, 1] = NONE, NONE, NONE
    eps = torch.rand(40, 4, dtype=torch.float64, generator=chance) * 0.45
    form = {"loss": kind} if kind in ("cdpo", "rdpo") else {}
    objective = build_preference("rosepo" if form else kind, PreferenceSettings(beta=0.4, **form))
    policy = log_ratios(ratios, torch.zeros_like(ratios))
    wanted = [slowly(r, e, 0.4, kind) for r, e in zip(ratios.tolist(), eps.tolist(), strict=True)]
    assert objective.loss(policy, eps).tolist() == pytest.approx(wanted, rel=1e-9)


def test_the_gradient_is_that_of_finite_differences_and_absent_answers_have_none():
    ratios = rows([0.3, -0.2, NONE, 0.9], [0.1, NONE, NONE, NONE]).requires_grad_()
    eps = torch.full((2, 3), 0.1).double()
    for loss in (
        lambda x: softmax_dpo_loss(x, beta=2.0),
        lambda x: dpo_loss(x, beta=2.0),
        lambda x: smoothed_dpo_loss(x, eps, beta=2.0, form="rdpo"),
    ):
        (gradient,) = torch.autograd.grad(loss(ratios).sum(), ratios)
        assert torch.isfinite(gradient).all()
        assert gradient[0, 2] == 0
        assert not gradient[1].any()
        step = torch.zeros_like(ratios)
        step[0, 0] = 1e-6
        slope = (loss(ratios + step) - loss(ratios - step)).sum() / 2e-6
        assert gradient[0, 0].item() == pytest.approx(slope.item(), rel=1e-6)


def test_margins_far_beyond_exp_stay_finite():
    ratios = torch.tensor([[-500.0, 500.0, 400.0], [500.0, -500.0, 0.0]], requires_grad=True)
    loss = softmax_dpo_loss(ratios, beta=1.0)
    assert loss.tolist() == pytest.approx([1000.0, 0.0])
    loss.sum().backward()
    assert torch.isfinite(ratios.grad).all()


def test_an_untrained_policy_pays_the_logarithm_of_the_number_of_answers():
    log_probs = -10 * torch.rand(4, 6)
    terms = build_preference("SDPO", PreferenceSettings(beta=1.0))(log_probs, log_probs, None)
    assert terms.total.item() == pytest.approx(4 * math.log(6), rel=1e-6)


def test_an_answer_is_the_sum_of_its_tokens_and_first_tokens_share_a_position():
    """Two rows; row 0 has answers (1 2), (1 3 0), row 1 has (2) and none; positions 0 and 3 predict first tokens."""
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    place, targets = torch.tensor([0, 1, 0, 2, 3, 4]), torch.tensor([1, 2, 1, 3, 0, 2])
    answer = torch.tensor([0, 0, 1, 1, 1, 2])
    table = logits.log_softmax(1)
    tokens = token_log_probs(logits, place, targets)
    assert torch.allclose(tokens, table[place, targets])
    sums = answer_log_probs(tokens, answer, torch.tensor([[True, True], [True, False]]))
    assert sums[0, 1].item() == pytest.approx((table[0, 1] + table[2, 3] + table[3, 0]).item())
    assert sums[1, 1] == NONE


def test_personalised_smoothing_is_an_oracles_doubt_below_one_half():
    eps = personalised_smoothing(rows([2.0]), rows([1.0, 2.0, 9.0]), temperature=1.0, limit=0.49)
    assert eps[0].tolist() == pytest.approx([1 / (1 + math.e), 0.49, 0.49])


@pytest.mark.parametrize("name", list(PREFERENCES))
def test_every_preference_loss_names_its_part_and_its_source(name):
    objective = build_preference(name, PreferenceSettings())
    terms = objective(rows([-1.0, -2.0]), rows([-1.5, -1.0]), None)
    assert list(terms.parts) == [name]
    assert terms.monitors["won"] == 1
    assert "https://" in PREFERENCES.get(name).__doc__


def test_monitors_are_sums_over_rows_of_margins_victories_and_gains_of_the_chosen_answer():
    policy = rows([-1.0, -2.0, NONE], [-3.0, -3.0, -4.0], [-1.0, -5.0, -3.0])
    reference = rows([-2.0, -2.0, NONE], [-3.0, -3.0, -4.0], [-3.0, -5.0, -5.0])
    monitors = build_preference("dpo", PreferenceSettings(beta=0.5))(policy, reference, None).monitors
    assert {name: value.item() for name, value in monitors.items()} == {"margin": 1.0, "won": 1.0, "chosen": 1.5}


def test_an_unknown_objective_is_told_all_names():
    with pytest.raises(UserError, match="dpo.*rosepo"):
        build_objective("sdpoo", ILRecSettings())
