"""MLflow's exceptions, sorted by what a sender must do: retry, give up, or unknown; knows no store."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dmt_ds.redact import masked
from dmt_ds.tracking.shipper import ItemDoubted, ItemRefused, StoreAway

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

_FINAL = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS")
_TOO_LARGE = "failed with error code 413 "
"""How MLflow tells a proxy's answer that it has no code for."""


def one_line(error: BaseException) -> str:
    """An error's kind and words, secrets masked."""
    text = " ".join(masked(str(error)).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:297] + '...'}"


@contextmanager
def translated() -> Iterator[None]:
    """MLflow's errors as our three."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (StoreAway, ItemRefused):
        raise
    except MlflowException as error:
        raise _kind_of(error)(one_line(error)) from error
    except Exception as error:
        raise StoreAway(one_line(error)) from error


def _kind_of(error: "MlflowException") -> type[Exception]:
    """BAD_REQUEST is also what MLflow makes of a connection pool that is used up, or of a broken connection."""
    if error.error_code in _FINAL or _TOO_LARGE in str(error):
        return ItemRefused
    return ItemDoubted if error.error_code == "BAD_REQUEST" else StoreAway
