"""How far a prediction, or a judgement, is: on a terminal, or in a log; knows no model."""

import logging
import sys
import time

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


class ImageProgress:
    """A bar on a terminal, a line every few seconds in a log."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="image", dynamic_ncols=True)

    def advance(self, count: int) -> None:
        """So many images more, at most those that there are."""
        count = min(count, self._total - self._done)
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() >= self._next_line:
            logger.info("%d of %d images", self._done, self._total)
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
