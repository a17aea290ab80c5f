"""One-to-one matching of directions: the assignment that makes the sum of similarities largest.

Shortest augmenting paths with potentials, one row after another (Jonker & Volgenant 1987; the rectangular form of
Crouse 2016), each step one pass over the columns.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def assign(similarity: Float[Tensor, "rows columns"]) -> Int[Tensor, " rows"]:
    """Returns the column of every row, no column twice, with the largest possible sum of similarities.

    With more rows than columns, rows that stay without a partner get −1.
    """
    if similarity.shape[0] > similarity.shape[1]:
        of_column = assign(similarity.T)
        columns = torch.full((len(similarity),), -1, dtype=torch.int64)
        columns[of_column] = torch.arange(similarity.shape[1])
        return columns
    cost = -similarity.detach().cpu().double().numpy()
    n_rows, n_columns = cost.shape
    row_potential, column_potential = np.zeros(n_rows), np.zeros(n_columns)
    row_of = np.full(n_columns, -1, dtype=np.int64)
    column_of = np.full(n_rows, -1, dtype=np.int64)
    for start in range(n_rows):
        shortest = np.full(n_columns, np.inf)
        came_from = np.full(n_columns, -1, dtype=np.int64)
        is_open = np.ones(n_columns, dtype=bool)
        visited_rows, visited_columns = [], []
        row, length = start, 0.0
        while True:
            visited_rows.append(row)
            through = length + cost[row] - row_potential[row] - column_potential
            better = is_open & (through < shortest)
            shortest[better] = through[better]
            came_from[better] = row
            candidates = np.where(is_open, shortest, np.inf)
            column = int(candidates.argmin())
            length = candidates[column]
            is_open[column] = False
            if row_of[column] < 0:
                break
            visited_columns.append(column)
            row = int(row_of[column])
        row_potential[start] += length
        for visited in visited_rows[1:]:
            row_potential[visited] += length - shortest[column_of[visited]]
        for visited in visited_columns:
            column_potential[visited] -= length - shortest[visited]
        while True:  # turn the path around
            row = int(came_from[column])
            row_of[column] = row
            column_of[row], column = column, column_of[row]
            if row == start:
                break
    return torch.from_numpy(column_of)
