"""What RecBole does to a process, undone."""

import torch

import recbole_ilrec.configuration.config  # noqa: F401


def test_gradients_are_not_searched_for_nan_because_recbole_was_imported():
    assert not torch.is_anomaly_enabled()
