"""Laws of the ILRec loss: what it reduces to, where its gradients go, and that a step may be cut anywhere."""

import math
import weakref
from dataclasses import replace

import pytest
import torch

from recbole_ilrec.objective import blocks, build_objective
from recbole_ilrec.schema import LayerStates
from recbole_ilrec.settings import ILRecSettings
from tests.objective_cases import EOS, random_step

STRONG = {"alpha": 0.4, "beta": 0.5, "lambda_": 0.3, "mu": 0.4}


def assert_same(step, one, other):
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    for a, b in zip(step.gradients(one), step.gradients(other), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def ce(step):
    return step.run("sft").total


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0, "lambda_": 0, "mu": 0},
        {"use_cpo": False, "use_cpd": False, "use_crr": False},
        {"alpha": math.inf, "lambda_": 0, "mu": 0},
        {"k": 0, "beta": 0, "mu": 0},
    ],
    ids=str,
)
def test_without_its_terms_ilrec_is_cross_entropy(settings):
    step = random_step(17, 13)
    assert_same(step, step.run(**settings).total, ce(step))


def test_beta_zero_reduces_cpo_to_cross_entropy():
    step = random_step(17, 13)
    terms = step.run(beta=0)
    torch.testing.assert_close(terms.parts["cpo"], terms.monitors["ce"])
    assert_same(step, step.run(beta=0, lambda_=0, mu=1e-12).total, ce(step))


def test_without_negatives_cpo_and_crr_are_cross_entropy():
    """alpha = inf leaves H = {y}, whose label is 1."""
    step = random_step(17, 13)
    terms = step.run(alpha=math.inf)
    for part in ("cpo", "crr"):
        torch.testing.assert_close(terms.parts[part], ce(step).double(), check_dtype=False, atol=1e-6, rtol=1e-6)
    whole = step.gradients(step.run(alpha=math.inf, lambda_=0, mu=0.5).total)
    for a, b in zip(whole, step.gradients(1.5 * ce(step)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    assert terms.monitors["negatives"] == 0


def test_mu_zero_leaves_the_regularisation_out():
    step = random_step(9, 13)
    with_it, without = step.run(**STRONG), step.run(**{**STRONG, "mu": 0})
    assert with_it.parts["crr"] > 0
    assert without.parts["crr"] == 0
    torch.testing.assert_close(with_it.parts["cpo"], without.parts["cpo"])
    torch.testing.assert_close(with_it.parts["cpd"], without.parts["cpd"])


def test_without_candidate_layers_negatives_come_from_the_final_logits_and_nothing_is_distilled():
    step = random_step(9, 13)
    none, final = step.run(k=0), step.run(negatives_from="final")
    torch.testing.assert_close(none.parts["cpo"], final.parts["cpo"])
    torch.testing.assert_close(none.parts["crr"], final.parts["crr"])
    assert none.parts["cpd"] == 0 < final.parts["cpd"]


def test_one_candidate_layer_equal_to_the_last_is_the_final_switch():
    step = random_step(9, 13, layers=1)
    step.candidates = [step.final]
    torch.testing.assert_close(step.run(k=1).total, step.run(k=1, negatives_from="final").total)
    assert step.run(k=1).parts["cpd"].abs() < 1e-9


def test_monitors_count_what_they_say():
    step = random_step(15, 13)
    terms = step.run(**STRONG)
    torch.testing.assert_close(terms.monitors["ce"], step.run("sft").parts["ce"].detach())
    assert terms.monitors["outside_trie"] == sum(not row for row in step.table) > 0
    assert 0 < terms.monitors["penalised"] <= 15
    assert terms.monitors["negatives"] > terms.monitors["penalised"]
    assert 0 <= terms.monitors["frac_negative_logit"] <= terms.monitors["penalised"]
    single = step.run(**STRONG, max_negatives=1).monitors
    assert single["penalised"] == single["negatives"] > 0


def test_rewards_regularise_nothing_that_answers_no_history():
    """A30: other tasks have none, even where their rows take part in the other terms."""
    step = random_step(15, 13)
    silent = torch.arange(15) % 3 == 0
    batch = replace(step.batch(), target=step.batch().target.masked_fill(silent, -1))
    objective = build_objective("ilrec", ILRecSettings(**STRONG), step.item_tokens, eos_id=0)
    mixed, whole = objective(step.states(), batch, step.legal), step.run(**STRONG)
    alone = step.run(**STRONG, use_crr=False)
    for part in ("cpo", "cpd"):
        torch.testing.assert_close(mixed.parts[part], whole.parts[part])
    assert 0 < mixed.parts["crr"] < whole.parts["crr"]
    assert mixed.monitors["outside_trie"] < whole.monitors["outside_trie"]
    final, *_ = step.gradients(mixed.total)
    torch.testing.assert_close(final[silent], step.gradients(alone.total)[0][silent])


def test_rewards_regularise_rows_that_are_both_of_ilrec_and_of_a_history():
    step = random_step(15, 13)
    silent, other = torch.arange(15) % 3 == 0, torch.arange(15) % 3 == 1
    batch = replace(step.batch(), target=step.batch().target.masked_fill(silent, -1), ilrec_rows=~other)
    objectives = [
        build_objective("ilrec", ILRecSettings(**STRONG, use_crr=use), step.item_tokens, eos_id=EOS)
        for use in (True, False)
    ]
    totals = [objective(step.states(), batch, step.legal).total for objective in objectives]
    learned, rest = (step.gradients(total)[0] for total in totals)
    changed = (learned - rest).abs().amax(1) > 1e-6
    assert changed.any() and not changed[silent | other].any()


def test_candidate_layers_beyond_k_do_not_matter():
    step = random_step(9, 13)
    objective = build_objective("ilrec", ILRecSettings(**STRONG, k=2), step.item_tokens, eos_id=EOS)
    every = objective(step.states(), step.batch(), step.legal).total
    torch.testing.assert_close(every, step.run(**STRONG, k=2).total)


def test_distillation_does_not_reach_the_last_layer():
    """A10: the teacher is a constant, so only the layers below and the shared head learn from Eq. 8."""
    step = random_step(7, 11)
    final, *layers, head = step.part_gradients("cpd", **STRONG)
    torch.testing.assert_close(final, torch.zeros_like(final))  # a difference of two gradients
    assert all(layer.any() for layer in layers)
    assert head.any()
    final, *_ = step.part_gradients("cpd", **STRONG, detach_teacher=False)
    assert final.any()


def test_distillation_can_spare_the_head():
    """A11: the same gradient for the layers, none for the head."""
    step = random_step(7, 11)
    spared = step.part_gradients("cpd", **STRONG, cpd_detach_head=True)
    shared = step.part_gradients("cpd", **STRONG)
    torch.testing.assert_close(spared[-1], torch.zeros_like(spared[-1]))
    assert shared[-1].any()
    for a, b in zip(spared[1:-1], shared[1:-1], strict=True):
        torch.testing.assert_close(a, b)


def test_penalty_and_rewards_do_not_reach_the_candidate_layers():
    """A9, A23: weights and labels are constants; with ``detach_weights: false`` the weights are not."""
    step = random_step(7, 11)
    for part in ("cpo", "crr"):
        final, *layers, _ = step.part_gradients(part, **STRONG)
        assert final.any()
        assert not any(layer.any() for layer in layers)
    _, *layers, _ = step.part_gradients("cpo", **STRONG, detach_weights=False)
    assert all(layer.any() for layer in layers)


@pytest.mark.parametrize(
    "switch", [{}, {"crr_scope": "legal"}, {"cpd_support": "legal"}, {"max_negatives": 2}], ids=str
)
def test_loss_and_gradient_do_not_depend_on_how_a_step_is_cut(switch):
    step = random_step(23, 17)
    step.ilrec_rows = torch.arange(23) % 4 != 1
    whole = step.run(**STRONG, **switch).total
    for cuts in ([0, 11, 23], [0, 1, 2, 20, 23], list(range(24))):
        pieces = [step.rows(a, b).run(**STRONG, **switch).total for a, b in zip(cuts, cuts[1:], strict=False)]
        summed = torch.stack(pieces).sum()
        torch.testing.assert_close(summed, whole, atol=1e-4, rtol=1e-5)
        for a, b in zip(step.gradients(summed), step.gradients(whole), strict=True):
            torch.testing.assert_close(a, b)


def test_order_of_the_tokens_does_not_matter():
    step = random_step(8, 13)
    turned = random_step(8, 13)
    order = torch.arange(7, -1, -1)
    turned.final, turned.candidates = turned.final[order], [c[order] for c in turned.candidates]
    turned.targets = turned.targets[order]
    turned.legal = type(step.legal)(7 - step.legal.row.flip(0), step.legal.token.flip(0), step.legal.reward.flip(0))
    torch.testing.assert_close(turned.run(**STRONG).total, step.run(**STRONG).total)


def test_rows_of_other_tasks_get_plain_cross_entropy():
    step = random_step(10, 13)
    step.ilrec_rows = torch.arange(10) < 6
    terms = step.run(**STRONG)
    head, tail = step.rows(0, 6), step.rows(6, 10)
    head.ilrec_rows = None
    mine = head.run(**STRONG)
    torch.testing.assert_close(terms.parts["cpo"], mine.parts["cpo"] + tail.run("sft").parts["ce"])
    for part in ("cpd", "crr"):
        torch.testing.assert_close(terms.parts[part], mine.parts[part])
    step.ilrec_rows = torch.zeros(10, dtype=torch.bool)
    assert_same(step, step.run(**STRONG).total, ce(step))
    step.ilrec_rows = torch.ones(10, dtype=torch.bool)
    everything = step.run(**STRONG).total
    step.ilrec_rows = None
    assert_same(step, everything, step.run(**STRONG).total)


def test_end_tokens_can_be_left_out():
    step = random_step(20, 7)
    end = step.targets == EOS
    assert end.any()
    left_out = step.run(**STRONG, apply_to_eos=False)
    step.ilrec_rows = ~end
    torch.testing.assert_close(left_out.total, step.run(**STRONG).total)


def test_before_the_start_epoch_the_loss_is_cross_entropy():
    step = random_step(6, 9)
    assert_same(step, step.run(**STRONG, start_epoch=1.5, epoch=1.4).total, ce(step))
    assert_same(step, step.run(**STRONG, start_epoch=1.5, epoch=1.5).total, step.run(**STRONG).total)


def test_sharing_positions_is_unbiased_and_repeatable():
    """The mean over all samples is the full sum; one generator seed gives one sample."""
    step = random_step(5, 9)
    full = step.run(**STRONG).parts["cpd"].detach()
    source = torch.Generator().manual_seed(0)
    draws = torch.stack([step.run(cpd_share=0.4, generator=source).parts["cpd"].detach() for _ in range(400)])
    assert len(draws.unique()) <= 2**5
    assert (draws.mean() - full).abs() < 4 * draws.std() / 400**0.5
    again = [step.run(cpd_share=0.4, generator=torch.Generator().manual_seed(3)).parts["cpd"] for _ in range(2)]
    assert again[0] == again[1]


def test_sharing_positions_works_for_every_support():
    step = random_step(9, 11)
    for support in ("vocab", "item_tokens", "legal"):
        terms = step.run(cpd_share=0.5, cpd_support=support, generator=torch.Generator().manual_seed(0))
        assert terms.parts["cpd"] > 0


def test_mean_ensemble_takes_one_head_product_without_gradient():
    step = random_step(5, 9)
    calls = []

    def head(x):
        calls.append(torch.is_grad_enabled())
        return x @ step.head.T

    objective = build_objective("ilrec", ILRecSettings(lambda_=0))
    objective(LayerStates(step.final, tuple(step.candidates), head), step.batch(), step.legal)
    assert calls == [True, True, False]  # the first, of one row, finds out what the head learns with


class Kept:
    """A tensor that lives as long as autograd keeps it."""

    def __init__(self, tensor):
        self.tensor = tensor


def tables_kept_for_backward(step, *arguments, **settings):
    """Full ``[., V]`` tables of numbers that autograd keeps after the loss, counted in tables of N rows."""
    alive = weakref.WeakSet()

    def pack(x):
        kept = Kept(x)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        loss = step.run(*arguments, **settings).total
    assert loss.requires_grad
    head = step.head.untyped_storage().data_ptr()
    size = {}
    for x in (kept.tensor for kept in alive):
        if x.dim() > 1 and x.shape[-1] == len(step.head) and x.is_floating_point():
            size[x.untyped_storage().data_ptr()] = x.numel() / (len(step.targets) * len(step.head))
    size.pop(head, None)
    return sum(size.values())


def test_no_table_of_all_tokens_and_the_whole_vocabulary_is_kept(monkeypatch):
    """Cross-entropy keeps one table; ILRec keeps none, and its head products are as small as a chunk."""
    step = random_step(100, 401, dtype=torch.float32)
    assert tables_kept_for_backward(step, "sft") == 1
    assert tables_kept_for_backward(step) == tables_kept_for_backward(step, cpd_detach_head=True) == 0
    monkeypatch.setattr(blocks, "BLOCK", {"cpu": 401 * 4})
    monkeypatch.setattr(blocks, "CHUNK_ROWS", 8)
    rows = []

    def head(x):
        rows.append(len(x))
        return x @ step.head.T

    objective = build_objective("ilrec", ILRecSettings())
    objective(LayerStates(step.final, tuple(step.candidates), head), step.batch(), step.legal)
    assert max(rows) == 8 * (1 + 3)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(("block", "rows"), [(1, 1), (23 * 2, 3), (23 * 7, 1), (23 * 5, 7), (10**6, 1)])
def test_the_size_of_blocks_and_chunks_does_not_matter(monkeypatch, block, rows, constant):
    settings = {**STRONG, "cpd_share": 0.6, "detach_teacher": False, "detach_weights": constant}
    step = random_step(17, 23)
    step.ilrec_rows = torch.arange(17) % 5 != 2
    whole = step.run(**settings, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(blocks, "BLOCK", {"cpu": block})
    monkeypatch.setattr(blocks, "CHUNK_ROWS", rows)
    cut = step.run(**settings, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cut.parts, whole.parts)
    torch.testing.assert_close(cut.monitors, whole.monitors)
    assert_same(step, cut.total, whole.total)


def test_nothing_supervised_is_no_special_case():
    step = random_step(4, 9).rows(2, 2)
    terms = step.run(**STRONG)
    assert terms.total == 0
