"""Each equation alone: the worked example, the slow reference, and the laws it must keep."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recbole_ilrec.chance import keys_of_rows
from recbole_ilrec.objective.cpd import divergence, layer_distillation, sampled
from recbole_ilrec.objective.cpo import frac_negative_logit, penalised_cross_entropy
from recbole_ilrec.objective.crr import collaborative_regularisation, soft_labels
from recbole_ilrec.objective.distribution import distribution
from recbole_ilrec.objective.self_hard import ensemble_logits, ensemble_of_logits, hard_negatives, penalty_weights
from recbole_ilrec.objective.sft import cross_entropy
from recbole_ilrec.schema import LegalTokens, TokenBatch
from tests import reference

PENALTIES = ("multiplicative", "sign_safe", "additive", "log1p")
DIRECTIONS = ("student_teacher", "teacher_student", "js")


def same(logits):
    return logits


@pytest.fixture
def golden():
    """V = 6, y = 0, k = 2, alpha = .8: P-hat = [.75, 1.1, .9, 0, -.75, -.1], so p-hat(0) = .212593, tau = .170074."""
    final = torch.tensor([[2, 1.5, 0.5, -0.5, -1, 0]], dtype=torch.float64, requires_grad=True)
    layers = (
        torch.tensor([[0.5, 1, 1, 0.2, -0.5, -0.3]], dtype=torch.float64),
        torch.tensor([[1, 1.2, 0.8, -0.2, -1, 0.1]], dtype=torch.float64),
    )
    return final, layers, torch.tensor([0])


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(
        actual, torch.as_tensor(expected, dtype=actual.dtype).expand_as(actual), atol=tolerance, rtol=0
    )


def test_golden_negatives_and_weights(golden):
    """p-hat(1) = .301684 and p-hat(2) = .246998 reach .8 x .212593; w_1 = .301684 / .548682 = .549834."""
    _, layers, y = golden
    p_hat = ensemble_logits(layers, same)
    close(p_hat, [[0.75, 1.1, 0.9, 0, -0.75, -0.1]])
    chosen = hard_negatives(p_hat, y, 0.8)
    assert chosen.nonzero().tolist() == [[0, 1], [0, 2]]
    assert hard_negatives(p_hat, y, 1.2).nonzero().tolist() == [[0, 1]]
    close(penalty_weights(p_hat, chosen), [[0, 0.549834, 0.450166, 0, 0, 0]])
    close(penalty_weights(p_hat, chosen, weight_from="prob"), [[0, 0.513668, 0.486332, 0, 0, 0]])
    close(penalty_weights(p_hat, chosen, weight_from="uniform"), [[0, 0.5, 0.5, 0, 0, 0]])


@pytest.mark.parametrize(
    ("penalty", "value", "shifted"),
    [("multiplicative", 0.767369, 0.667713), ("sign_safe", 0.767369, 0.822280), ("additive", 0.761472, 0.761472)],
)
def test_golden_penalised_cross_entropy(golden, penalty, value, shifted):
    """Cross-entropy is .740445; with -5 on every logit the printed form falls below it, sign_safe does not."""
    final, layers, y = golden
    p_hat = ensemble_logits(layers, same)
    w = penalty_weights(p_hat, hard_negatives(p_hat, y, 0.8))
    close(cross_entropy(final, y), 0.740445)
    close(penalised_cross_entropy(final, y, w, 0.1, penalty)[0], value)
    close(penalised_cross_entropy(final - 5, y, w, 0.1, penalty)[0], shifted)


def test_golden_gradient_of_the_penalised_cross_entropy(golden):
    """d/dz_v = p~_v (1 + beta w_v) - [v = y]."""
    final, layers, y = golden
    p_hat = ensemble_logits(layers, same)
    w = penalty_weights(p_hat, hard_negatives(p_hat, y, 0.8))
    close(penalised_cross_entropy(final, y, w, 0.1)[1], [[-0.535767, 0.322591, 0.110711, 0.038107, 0.023113, 0.062827]])


def test_golden_distillation_and_regularisation(golden):
    """r = [.6, .3, .05] / .95; q over {0, 1, 2} = [.436738, .318475, .244787]; L = .778131 in all."""
    final, layers, y = golden
    chosen = hard_negatives(ensemble_logits(layers, same), y, 0.8)
    w = penalty_weights(ensemble_logits(layers, same), chosen)
    rewards = torch.tensor([0.6, 0.3, 0.05], dtype=torch.float64) / 0.95
    legal = LegalTokens(torch.zeros(3, dtype=torch.long), torch.arange(3), rewards)
    final = final.detach()
    teacher, labels = distribution(final), soft_labels(y, chosen, legal, torch.tensor([False]))
    cpd = layer_distillation(torch.stack(layers, 1), teacher)[0]
    crr = collaborative_regularisation(teacher, labels)
    close(labels, [[0.436738, 0.318475, 0.244787, 0, 0, 0]])
    close(cpd, 0.442742)
    close(layer_distillation(torch.stack(layers, 1), teacher, direction="teacher_student")[0], 0.443574)
    close(crr, 1.266862)
    close(penalised_cross_entropy(final, y, w, 0.1)[0] + 0.01 * cpd + 0.005 * crr, 0.778131)


@pytest.mark.parametrize("shape", [(1, 5), (3, 31), (2, 257)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_terms_equal_the_slow_reference_in_value_and_gradient(shape, dtype):
    rows, vocab = shape
    source = torch.Generator().manual_seed(vocab)
    z = (torch.randn(shape, generator=source) * 3).to(dtype).float()
    p_hat = (torch.randn(shape, generator=source) * 3).to(dtype)
    y = torch.randint(vocab, (rows,), generator=source)
    exact = z.double().requires_grad_()
    chosen = hard_negatives(p_hat, y, 0.5)
    w = penalty_weights(p_hat, chosen)
    fast = {p: penalised_cross_entropy(z, y, w, 0.4, p)[:2] for p in PENALTIES}
    fast |= {d: divergence(distribution(z), distribution(p_hat.float()), d)[:2] for d in DIRECTIONS}
    sets = [reference.negatives(p.double(), int(t), 0.5) for p, t in zip(p_hat, y, strict=True)]
    assert [row.nonzero().squeeze(1).tolist() for row in chosen] == sets
    slow = {name: [] for name in fast}
    for n, (p, t) in enumerate(zip(p_hat.double(), y.tolist(), strict=True)):
        for name in PENALTIES:
            slow[name].append(reference.cpo(exact[n], t, reference.weights(p, sets[n]) if sets[n] else {}, 0.4, name))
        for name in DIRECTIONS:
            slow[name].append(reference.cpd([exact[n]], p, direction=name))
    for name, (value, got) in fast.items():
        expected = torch.stack(slow[name])
        torch.testing.assert_close(value.double(), expected.detach(), atol=2e-6, rtol=2e-6)
        (wanted,) = torch.autograd.grad(expected.sum(), exact)
        torch.testing.assert_close(got.double(), wanted, atol=1e-6, rtol=1e-6)


def numeric(function, x, step=1e-6):
    """Central differences of each row's value by that row of ``x``."""
    result = torch.zeros_like(x)
    for at in range(x.shape[1]):
        move = torch.zeros_like(x)
        move[:, at] = step
        result[:, at] = (function(x + move) - function(x - move)) / (2 * step)
    return result


@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradients_of_the_penalised_cross_entropy_equal_finite_differences(penalty):
    z, y = torch.randn(3, 7, dtype=torch.float64), torch.tensor([0, 3, 6])
    negatives = (torch.rand(3, 7) > 0.5).scatter(1, y[:, None], False)
    w = torch.rand(3, 7, dtype=torch.float64) * negatives

    def value(z, w):
        return penalised_cross_entropy(z, y, w, 0.5, penalty)[0]

    _, by_z, by_w = penalised_cross_entropy(z, y, w, 0.5, penalty, by_weights=True)
    torch.testing.assert_close(by_z, numeric(lambda x: value(x, w), z), atol=1e-7, rtol=1e-7)
    wanted = numeric(lambda x: value(z, x), w)
    torch.testing.assert_close(by_w[negatives], wanted[negatives], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_of_divergences_equal_finite_differences(direction):
    student, teacher = (torch.randn(3, 6, dtype=torch.float64) for _ in range(2))

    def value(s, t):
        return divergence(distribution(s), distribution(t), direction)[0]

    _, by_s, by_t = divergence(distribution(student), distribution(teacher), direction, by_teacher=True)
    torch.testing.assert_close(by_s, numeric(lambda x: value(x, teacher), student), atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(by_t, numeric(lambda x: value(student, x), teacher), atol=1e-7, rtol=1e-7)


def test_the_loss_is_exact_when_the_negatives_hold_all_probability():
    """One negative has all the mass and is pushed down by 40 nats: nothing may be lost to cancellation."""
    z = torch.tensor([[-60.0, -20.0, -61.0, -62.0]])
    w = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    value, gradient, _ = penalised_cross_entropy(z, torch.tensor([0]), w, 2.0)
    exact = z.double().requires_grad_()
    wanted = reference.cpo(exact[0], 0, {1: 1.0}, 2.0)
    torch.testing.assert_close(value[0].double(), wanted.detach(), atol=1e-6, rtol=0)
    wanted.backward()
    torch.testing.assert_close(gradient.double(), exact.grad, atol=1e-6, rtol=1e-6)


def test_all_tokens_as_negatives_is_no_special_case():
    z, y = torch.randn(2, 5), torch.tensor([1, 4])
    w = penalty_weights(z, hard_negatives(z, y, 0.0))
    assert (w > 0).sum() == 8
    assert all(x.isfinite().all() for x in penalised_cross_entropy(z, y, w, 0.1)[:2])


def test_a_row_without_negatives_has_no_weights_and_no_gradient_through_them():
    z = torch.randn(2, 5, requires_grad=True)
    w = penalty_weights(z, torch.tensor([[0.0] * 5, [1.0, 0.0, 1.0, 0.0, 0.0]]))
    assert not w[0].any() and w[1].sum().item() == pytest.approx(1)
    (gradient,) = torch.autograd.grad(w[:, 2].sum(), z)
    assert gradient.isfinite().all() and not gradient[0].any() and gradient[1].any()


def test_alpha_zero_takes_every_other_token_and_infinity_none():
    p_hat, y = torch.randn(3, 8), torch.tensor([0, 4, 7])
    for on in ("prob", "logit"):
        assert not hard_negatives(p_hat, y, math.inf, threshold_on=on).any()
    assert (hard_negatives(p_hat, y, 0.0).sum(1) == 7).all()


@given(st.integers(0, 10_000), st.floats(0, 3), st.floats(-30, 30))
@hypothesis_settings(max_examples=40, deadline=None)
def test_negatives_and_weights_do_not_depend_on_a_shift(seed, alpha, shift):
    source = torch.Generator().manual_seed(seed)
    p_hat = torch.randn(4, 13, generator=source, dtype=torch.float64) * 4
    y = torch.randint(13, (4,), generator=source)
    chosen = hard_negatives(p_hat, y, alpha)
    moved = hard_negatives(p_hat + shift, y, alpha)
    assert torch.equal(chosen, moved)
    w = penalty_weights(p_hat, chosen)
    torch.testing.assert_close(w, penalty_weights(p_hat + shift, moved))
    torch.testing.assert_close(w.sum(1), chosen.any(1).double())
    assert not chosen.gather(1, y[:, None]).any()


@pytest.mark.parametrize(("penalty", "invariant"), [("multiplicative", False), ("sign_safe", False),
                                                    ("additive", True), ("log1p", True)])  # fmt: skip
def test_which_penalties_do_not_depend_on_a_shift(penalty, invariant):
    z, y = torch.randn(5, 11, dtype=torch.float64), torch.arange(5)
    w = penalty_weights(z, hard_negatives(z, y, 0.3))
    assert w.any()
    values = [penalised_cross_entropy(z + c, y, w, 0.3, penalty)[0] for c in (0, -7)]
    assert torch.allclose(*values) == invariant


def test_penalty_on_logits_never_lowers_the_loss_except_as_printed():
    z, y = torch.randn(40, 11) - 3, torch.zeros(40, dtype=torch.long)
    w = penalty_weights(z, hard_negatives(z, y, 0.3))
    ce = cross_entropy(z, y)
    for penalty in ("sign_safe", "additive", "log1p"):
        assert (penalised_cross_entropy(z, y, w, 0.3, penalty)[0] >= ce - 1e-6).all()
    assert (penalised_cross_entropy(z, y, w, 0.3)[0] < ce - 1e-4).any()


def test_share_of_weight_on_negative_logits():
    z = torch.tensor([[1.0, 2.0, -1.0], [1.0, 2.0, 3.0]])
    close(frac_negative_logit(z, torch.tensor([[0, 0.75, 0.25], [0, 0, 0]])), torch.tensor([0.25, 0.0]))


def test_threshold_switches_equal_the_reference():
    source = torch.Generator().manual_seed(3)
    p_hat, final = (torch.randn(6, 29, generator=source, dtype=torch.float64) * 2 for _ in range(2))
    y = torch.randint(29, (6,), generator=source)
    allowed = torch.rand(29, generator=source) > 0.4
    names = set(allowed.nonzero().squeeze(1).tolist())
    for on in ("prob", "logit"):
        for tau in (None, final):
            for most in (None, 2):
                mask = hard_negatives(p_hat, y, 0.6, threshold_on=on, final=tau, allowed=allowed, max_negatives=most)
                for n in range(6):
                    wanted = reference.negatives(
                        p_hat[n], int(y[n]), 0.6, threshold_on=on, final=None if tau is None else tau[n],
                        allowed=names, max_negatives=most,
                    )  # fmt: skip
                    assert mask[n].nonzero().squeeze(1).tolist() == wanted


@pytest.mark.parametrize("how", ["mean", "sum", "mean_prob", "mean_logprob"])
def test_ensemble_through_one_head_product_equals_the_ensemble_of_all_heads(how):
    source = torch.Generator().manual_seed(5)
    states = [torch.randn(4, 8, generator=source, dtype=torch.float64) for _ in range(3)]
    head = torch.randn(19, 8, generator=source, dtype=torch.float64)
    got = ensemble_logits(states, lambda x: x @ head.T, ensemble=how)
    known = torch.stack([s @ head.T for s in states], 1)
    torch.testing.assert_close(ensemble_of_logits(known, ensemble=how), got)
    for n in range(4):
        torch.testing.assert_close(got[n], reference.ensemble([head @ s[n] for s in states], how))


def test_divergence_of_equal_distributions_is_zero_and_js_is_bounded():
    z, other = (distribution(torch.randn(5, 9) * 8) for _ in range(2))
    for direction in DIRECTIONS:
        close(divergence(z, distribution(z.logits + 3), direction)[0], 0.0, 1e-5)
    assert (divergence(z, other, "js")[0] <= math.log(2) + 1e-6).all()
    torch.testing.assert_close(divergence(z, other)[0], divergence(other, z, "teacher_student")[0])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_probabilities_that_underflow_count_among_legal_tokens_too(direction):
    """Layers 300 nats apart, float32 ends at 87: with all tokens legal it is the divergence over the vocabulary."""
    students, teacher = torch.tensor([[[0.0, -300.0, 5.0]]]), torch.tensor([[-250.0, 0.0, -1.0]])
    legal = LegalTokens(torch.zeros(3, dtype=torch.long), torch.arange(3))
    whole, among = (
        layer_distillation(students.clone(), distribution(teacher), direction=direction, legal=x, by_teacher=True)
        for x in (None, legal)
    )
    for wanted, got in zip(whole, among, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("keyed", [False, True])
def test_sampled_tokens_are_an_unbiased_choice(share, keyed):
    """Every token is drawn equally often and on its own, so a sum over them has a mean of ``share`` of all."""
    rows, place = 4000, torch.arange(4000 * 10)
    batch = TokenBatch(place.view(rows, 10), place, place, place, place)
    if keyed:
        batch = replace(batch, row_keys=keys_of_rows(0, 0, 0, np.arange(rows)))
    draws = sampled(batch, share, torch.Generator().manual_seed(0)).view(rows, 10).double()
    close(draws.mean(0), share, 5 * (share * (1 - share) / rows) ** 0.5)
    close(torch.corrcoef(draws.T).fill_diagonal_(0), 0, 5 / rows**0.5)
    close(torch.corrcoef(draws[:100]).fill_diagonal_(0).nan_to_num(0).mean(), 0, 0.02)
    assert sampled(batch, 1.0, None) is None


def test_a_token_is_sampled_or_not_whatever_stands_beside_its_row():
    """Rows alone, together and padded: the choice is by row and place."""
    keys = keys_of_rows(0, 0, 0, np.arange(5))

    def chosen(rows, width):
        place = torch.arange(7).repeat(len(rows)) + width * torch.arange(len(rows)).repeat_interleave(7)
        batch = TokenBatch(torch.zeros(len(rows), width), place, *[torch.zeros_like(place)] * 3, row_keys=keys[rows])
        return sampled(batch, 0.5, None).view(len(rows), 7)

    together = chosen([0, 1, 2, 3, 4], 7)
    assert torch.equal(torch.cat([chosen([row], 9 + row) for row in range(5)]), together)
    assert len(together.unique(dim=0)) == 5
