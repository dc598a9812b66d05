"""lm-eval's own Hugging Face model, which reports how many tokens it has read."""

from collections.abc import Callable
from typing import Any

from lm_eval.models.huggingface import HFLM

Report = Callable[[float, float], object]
LOGITS_AT_ONCE = 2**28  # of windows as long as the context, 1 GiB in float32


class ReportingModel(HFLM):
    """`HFLM` with a progress report; what is computed is the same.

    Args:
        report: called with the tokens read of a task and all its tokens.
        arguments: of `HFLM`.
    """

    def __init__(self, report: Report, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.report = report
        self._read, self._total = 0, 0

    def fit_batch(self) -> None:
        """Lower the batch size to windows of the whole context length whose logits fit `LOGITS_AT_ONCE`."""
        most = LOGITS_AT_ONCE // (self.max_length * self.config.get_text_config().vocab_size)
        self.batch_size_per_gpu = max(1, min(self.batch_size, most))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        self._expect(sum(len(self.tok_encode(request.args[0])) for request in requests))
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        if requests[0][0] is not None:  # not the windows of a rolling request
            # answers of one token share one reading of their prompt
            rows = {(*prompt, *answer[:-1]) for _, prompt, answer in requests}
            self._expect(sum(min(len(row), self.max_length) for row in rows))
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _model_call(self, inps: Any, *arguments: Any, **named: Any) -> Any:
        logits = super()._model_call(inps, *arguments, **named)
        self._read = min(self._total, self._read + inps.numel())  # with padding
        self.report(self._read, self._total)
        return logits

    def _expect(self, tokens: int) -> None:
        self._read, self._total = 0, tokens
        self.report(0, tokens)
