"""What is laid open of a loss is what the loss computes."""

import pytest
import torch

from recbole_ilrec.objective.explain import explain
from recbole_ilrec.objective.ilrec import ILRec
from recbole_ilrec.schema import LayerStates, LegalTokens
from recbole_ilrec.settings import ILRecSettings
from tests.objective_cases import EOS, random_step

READINGS = [
    {},
    {"k": 1, "beta": 1.0, "alpha": 0.3, "penalty": "additive"},
    {"ensemble": "mean_prob", "neg_scope": "legal", "tau_from": "final"},
    {"neg_scope": "item_tokens", "cpd_support": "item_tokens", "cpd_direction": "teacher_student"},
    {"cpd_support": "legal", "cpd_layer_reduction": "mean", "crr_scope": "legal", "crr_label": "normalised"},
    {"negatives_from": "final", "weight_from": "uniform", "max_negatives": 2, "crr_temperature": 0.2},
]


@pytest.mark.parametrize("settings", READINGS)
def test_losses_are_those_of_training_and_tables_those_of_the_equations(settings):
    step = random_step(rows=9, vocab=17)
    terms = step.run(**{"mu": 0.1, **settings})
    objective = ILRec(ILRecSettings(**{"mu": 0.1, **settings}), step.item_tokens, eos_id=EOS)
    layers = step.candidates[len(step.candidates) - objective.settings.layers :]
    seen = explain(objective, LayerStates(step.final, tuple(layers), step.states().head), step.targets, step.legal)
    for name, part in terms.parts.items():
        assert seen.losses[name].sum().item() == pytest.approx(part.item(), rel=1e-9), name
    assert seen.losses["ce"].sum().item() == pytest.approx(terms.monitors["ce"].item(), rel=1e-9)
    assert seen.negatives.sum().item() == terms.monitors["negatives"].item()
    assert not seen.negatives.gather(1, step.targets[:, None]).any()
    assert torch.equal(seen.weights > 0, seen.negatives)
    assert seen.layers.shape == (9, objective.settings.layers, 17)
    for table in (seen.final, seen.ensemble, *seen.layers.unbind(1), seen.labels):
        assert table.sum(1).tolist() == pytest.approx([1.0] * 9, abs=1e-6)
    inside = [float(bool(rewards)) for rewards in step.table]
    assert seen.rewards.sum(1).tolist() == pytest.approx(inside, abs=1e-6)


@pytest.mark.parametrize(("settings", "read"), [({}, "ensemble"), ({"tau_from": "final"}, "final")])
def test_negatives_reach_the_threshold_and_rows_of_other_tasks_have_none(settings, read):
    step = random_step(rows=9, vocab=17)
    objective = ILRec(ILRecSettings(mu=0.1, alpha=0.3, **settings), step.item_tokens, eos_id=EOS)
    layers = step.candidates[len(step.candidates) - objective.settings.layers :]
    states = LayerStates(step.final, tuple(layers), step.states().head)
    active, truth = torch.arange(9) % 2 == 0, step.targets[:, None]
    seen = explain(objective, states, step.targets, step.legal, active)
    torch.testing.assert_close(seen.threshold, 0.3 * getattr(seen, read).gather(1, truth)[:, 0])
    reached = (seen.ensemble >= seen.threshold[:, None]).scatter(1, truth, False)
    assert torch.equal(seen.negatives, reached & active[:, None])
    assert not seen.losses["cpd"][~active].any() and not seen.losses["crr"][~active].any()
    torch.testing.assert_close(seen.losses["cpo"][~active], seen.losses["ce"][~active])


def test_without_layers_and_rewards_the_last_layer_speaks_alone():
    step = random_step(rows=4, vocab=11)
    objective = ILRec(ILRecSettings(k=0, mu=0), step.item_tokens)
    legal = LegalTokens(step.legal.row, step.legal.token)
    seen = explain(objective, LayerStates(step.final, (), step.states().head), step.targets, legal)
    assert torch.equal(seen.ensemble, seen.final) and seen.layers.shape == (4, 0, 11)
    assert seen.rewards is seen.labels is None and set(seen.losses) == {"ce", "cpo", "cpd"}
    assert not seen.losses["cpd"].any()
