"""What MLflow raises as the two things that matter to who sends: later, or never; knows no store."""

from collections.abc import Iterator
from contextlib import contextmanager

from dmt_ds.redact import masked
from dmt_ds.tracking.shipper import ItemRefused, StoreAway


def one_line(error: BaseException) -> str:
    """An error's kind and words, secrets masked."""
    text = masked(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:297] + '...'}"


@contextmanager
def translated() -> Iterator[None]:
    """MLflow's errors as our two."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (StoreAway, ItemRefused):
        raise
    except MlflowException as error:
        if error.get_http_status_code() in (400, 413):
            raise ItemRefused(one_line(error)) from error
        raise StoreAway(one_line(error)) from error
    except Exception as error:
        raise StoreAway(one_line(error)) from error
