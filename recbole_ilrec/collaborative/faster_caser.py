"""RecBole's Caser with its convolutions as matrix products: the same function, several times as fast on a CPU."""

import torch
from recbole.model.sequential_recommender.caser import Caser as RecBoleCaser
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence


class Caser(RecBoleCaser):
    """RecBole's model: its parameters by their names, its loss and scores; equal to it but for rounding.

    Stock, each of the ``L`` heights of a horizontal filter is a convolution of one channel and a few filters, shapes
    for which a CPU's convolutions are slow. Here all filters stand in one matrix, and the windows that begin at one
    place of the history are one product of all batch rows with a corner of it (``docs/speed.md`` has the times).
    """

    def forward(self, user: Tensor, item_seq: Tensor) -> Tensor:
        """The state of each history.

        Args:
            user: ``[B]`` ids.
            item_seq: ``[B, L]`` item ids, zeros behind.

        Returns:
            ``[B, D]``.
        """
        items = self.item_embedding(item_seq)
        features = torch.cat([self._vertical(items), self._horizontal(items)], dim=1)
        short_term = self.ac_fc(self.fc1(self.dropout(features)))
        state: Tensor = self.ac_fc(self.fc2(torch.cat([short_term, self.user_embedding(user)], dim=1)))
        return state

    def _vertical(self, items: Tensor) -> Tensor:
        """``[B, L, D]`` to ``[B, V * D]``: V weighted sums over the history."""
        weight = self.conv_v.weight.flatten(1)  # [V, L]
        sums = weight @ items + self.conv_v.bias[:, None]  # [B, V, D]
        return sums.flatten(1)

    def _horizontal(self, items: Tensor) -> Tensor:
        """``[B, L, D]`` to ``[B, L * H]``: the largest answer of each filter anywhere in the history.

        A filter of height h is laid over rows 0 to h - 1 of the matrix; those that still fit behind place t of the
        history are the first L - t heights, and they read its first L - t rows.
        """
        length, width, filters = self.max_seq_length, items.shape[2], self.n_h
        flat = items.flatten(1)  # [B, L * D]
        columns = [conv.weight.flatten(1).t() for conv in self.conv_h]  # [h * D, H] each
        matrix = pad_sequence(columns).flatten(1)  # [L * D, L * H]
        best = flat @ matrix
        for start in range(1, length):
            left = length - start
            answers = flat[:, start * width :] @ matrix[: left * width, : left * filters]
            padded = functional.pad(answers, (0, start * filters), value=-torch.inf)  # for filters that do not fit
            best = torch.maximum(best, padded)
        biased: Tensor = self.ac_conv(best + torch.cat([conv.bias for conv in self.conv_h]))
        return biased
