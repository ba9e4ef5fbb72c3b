"""Google Cloud Storage: its client, and what its answers mean.

With the credentials of the environment, which no message ever shows.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from configs.errors import TryAgainError, UserError

if TYPE_CHECKING:
    from google.cloud.storage import Blob


def is_remote(path: str) -> bool:
    return path.startswith("gs://")


@functools.lru_cache(maxsize=1)
def client() -> Any:
    from google.cloud import storage

    # Nothing here needs a project, which not all credentials name.
    return storage.Client(project=None)


def split(path: str) -> tuple[str, str]:
    bucket, _, name = path.removeprefix("gs://").partition("/")
    return bucket, name


def blob(path: str) -> "Blob":
    bucket, name = split(path)
    with clear_errors(path):
        return client().bucket(bucket).blob(name)


def existing(path: str) -> "Blob":
    found = blob(path)
    with clear_errors(path):
        found.reload()
    return found


def location(path: str) -> str:
    """Returns where a bucket lies, such as "US-CENTRAL1" or "EU"; empty: unknown.

    To know it takes a permission that reading and writing do not.
    """
    from google.api_core.exceptions import Forbidden

    with clear_errors(path), contextlib.suppress(Forbidden):
        return str(client().get_bucket(split(path)[0]).location or "")
    return ""


def retry() -> Any:
    """Repeats whatever a bucket cannot do at the moment: all of it can be repeated."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY


def delete(blob: "Blob", **conditions: int) -> None:
    from google.api_core.exceptions import NotFound

    # Where the answer to a first attempt was lost, it is not there any more.
    with contextlib.suppress(NotFound):
        blob.delete(retry=retry(), **conditions)


@contextlib.contextmanager
def clear_errors(path: str) -> Iterator[None]:
    """Turns what the bucket refuses into one message, without any credential."""
    import requests
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError, TransportError

    try:
        yield
    except (
        exceptions.RetryError,
        exceptions.ServerError,
        exceptions.TooManyRequests,
        requests.exceptions.ConnectionError,
        requests.exceptions.Timeout,
        TransportError,
    ) as error:
        raise TryAgainError(
            f"{path} cannot be reached: its bucket does not answer, also when it is "
            f"asked again ({type(error).__name__}). The same command continues when it "
            "does."
        ) from None
    except (exceptions.NotFound, exceptions.Forbidden, exceptions.Unauthorized) as e:
        raise UserError(
            f"{path} must exist, and its bucket must let this account read and write. "
            f"The bucket answered {e.code} {type(e).__name__}. Correct the path, or "
            "give the account the role Storage Object Admin."
        ) from None
    except GoogleAuthError as error:
        raise UserError(
            f"{path} needs credentials: {type(error).__name__}. Run `gcloud auth "
            "application-default login`, or use a machine with a service account."
        ) from None
