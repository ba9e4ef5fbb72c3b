"""Connects to Google Cloud Storage and translates its errors.

Uses the credentials of the environment, which no message contains. The library is
imported on first use: a run on local files does not load it.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from configs.errors import TryAgainError, UserError

if TYPE_CHECKING:
    from google.cloud.storage import Blob


def is_remote(path: str) -> bool:
    """Returns whether a path names a bucket."""
    return path.startswith("gs://")


@functools.lru_cache(maxsize=1)
def client() -> Any:
    """Returns this process's client."""
    from google.cloud import storage

    # Not all credentials name a project, and no request of ours needs one.
    return storage.Client(project=None)


def split(path: str) -> tuple[str, str]:
    """Splits `gs://BUCKET/NAME` into bucket and object name."""
    bucket, _, name = path.removeprefix("gs://").partition("/")
    return bucket, name


def blob(path: str) -> "Blob":
    """Returns a handle of an object, without a request."""
    bucket, name = split(path)
    with translate_errors(path):
        return client().bucket(bucket).blob(name)


def existing_blob(path: str) -> "Blob":
    """Returns an object with its metadata.

    Raises:
      UserError: the object does not exist or is not accessible.
    """
    result = blob(path)
    with translate_errors(path):
        result.reload()
    return result


def location(path: str) -> str:
    """Returns the location of a bucket, such as "US-CENTRAL1" or "EU".

    Returns "" without the permission to read it, which storing objects does not need.
    """
    from google.api_core.exceptions import Forbidden

    with translate_errors(path), contextlib.suppress(Forbidden):
        return str(client().get_bucket(split(path)[0]).location or "")
    return ""


def retry() -> Any:
    """Returns the retry policy for requests that the library does not retry by itself.

    All requests of this package can be repeated.
    """
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY


def delete(blob: "Blob", **conditions: int) -> None:
    """Deletes an object, if it exists.

    Args:
      blob: the object.
      **conditions: preconditions of `Blob.delete`.
    """
    from google.api_core.exceptions import NotFound

    # The response to a first, successful attempt may have been lost.
    with contextlib.suppress(NotFound):
        blob.delete(retry=retry(), **conditions)


@contextlib.contextmanager
def translate_errors(path: str) -> Iterator[None]:
    """Replaces errors of a bucket by one message without credentials.

    Args:
      path: named in the message.

    Raises:
      TryAgainError: the bucket did not respond.
      UserError: the bucket or object does not exist or is not accessible.
    """
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
            f"{path} cannot be reached: its bucket does not answer, even after "
            f"retries ({type(error).__name__}). Run the same command again later; it "
            "continues."
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
