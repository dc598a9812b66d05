"""`SeriesWindows`: every window of some series as a map-style dataset."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from titanslab.data.series.scaler import Scaler
from titanslab.data.series.series import Series

Rows = tuple[int, int]


class SeriesWindows(Dataset):
    """All windows of a part of some series: a history and the rows after it, on the standardised scale.

    Windows are in the order of the series and of their rows, and none is dropped. An item is a dict for the `forward`
    of a forecasting model: `past_values [L, C]` and `future_values [H, C]` in float32 with 0 for missing values, bool
    `past_observed_mask` and `future_observed_mask`, and int64 `past_time_index`, the row number of the history's first
    row in its series.

    Args:
        series: with the same number of columns.
        context_length, prediction_length: L and H.
        rows: for each series, the first and the end of the rows that targets may come from; None = all rows. Histories
            of the first targets reach `context_length` rows back before `first`, as far as the series goes.
        scalers: one for each series; None = values as they are.
        pad: give a series that is too short for one window a history that begins with missing values, so that it has
            one. Series without `prediction_length` rows have none in any case.
        stride: rows from one window to the next.
    """

    def __init__(
        self,
        series: Sequence[Series],
        context_length: int,
        prediction_length: int,
        *,
        rows: Sequence[Rows] | None = None,
        scalers: Sequence[Scaler] | None = None,
        pad: bool = False,
        stride: int = 1,
    ) -> None:
        self.context_length, self.prediction_length = context_length, prediction_length
        length = context_length + prediction_length
        self.values: list[np.ndarray] = []  # float32 [T, C] of each series, standardised, NaN = missing
        self.offsets: list[int] = []  # row number in the series of each array's first row
        starts: list[np.ndarray] = []
        self.without = 0  # series that are too short
        for i, one in enumerate(series):
            first, stop = (0, one.rows) if rows is None else rows[i]
            begin = max(0, first - context_length)
            part = one.values[begin:stop]
            part = part if scalers is None else scalers[i].transform(part)
            if pad and prediction_length < len(part) < length:
                missing = np.full((length - len(part), part.shape[1]), np.nan)
                part, begin = np.concatenate((missing, part)), begin - (length - len(part))
            count = max(0, (len(part) - length) // stride + 1)
            self.without += not count
            self.values.append(part.astype(np.float32))
            self.offsets.append(begin)
            starts.append(np.stack((np.full(count, i), np.arange(count) * stride), axis=1))
        self.index = np.concatenate(starts) if starts else np.zeros((0, 2), np.int64)  # series, row of its array

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        which, row = (int(n) for n in self.index[i])
        past, future = torch.from_numpy(self.rows_of(i)).split((self.context_length, self.prediction_length))
        return {
            "past_values": past.nan_to_num(),
            "past_observed_mask": ~past.isnan(),
            "future_values": future.nan_to_num(),
            "future_observed_mask": ~future.isnan(),
            "past_time_index": torch.tensor(self.offsets[which] + row),
        }

    def rows_of(self, i: int) -> np.ndarray:
        """History and targets of window i, float32 `[L + H, C]`; NaN = missing."""
        which, row = (int(n) for n in self.index[i])
        return self.values[which][row : row + self.context_length + self.prediction_length]

    def place(self, i: int) -> tuple[int, int]:
        """The series of window i, and the row number in that series of its first target."""
        which, row = (int(n) for n in self.index[i])
        return which, self.offsets[which] + row + self.context_length

    def check(self, where: str, part: str) -> None:
        """ValueError if there is no window."""
        if len(self):
            return
        need = self.context_length + self.prediction_length
        longest = max((len(v) for v in self.values), default=0)
        raise ValueError(
            f"{where}: the {part} rows are too few: a window has {self.context_length} rows of history and "
            f"{self.prediction_length} of horizon, {need} together, and there are {longest}; give more rows, or a "
            "shorter context_length or prediction_length"
        )
