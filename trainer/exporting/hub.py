"""Uploads a folder to the Hugging Face Hub (HF_ENDPOINT)."""

import pathlib

import huggingface_hub
import requests
from huggingface_hub.errors import HFValidationError

from configs.errors import RunError, UserError


class Uploader:
    """Uploads to one repository; checks its name and the token at once.

    Args:
      repository: USER/NAME.

    Raises:
      UserError: the name is not valid, or there is no usable token.
    """

    def __init__(self, repository: str):
        token = (huggingface_hub.get_token() or "").strip()
        # An invalid header value would be quoted in an error message: the token leaks.
        if not token or not token.isascii() or not token.isprintable():
            raise UserError(
                "`--push_to_hub` must have a token: set HF_TOKEN, or run "
                "`huggingface-cli login`. Received: "
                f"{'none' if not token else 'one with invalid characters'}."
            )
        try:
            huggingface_hub.utils.validate_repo_id(repository)
        except HFValidationError as error:
            raise UserError(
                f"`--push_to_hub` must be USER/NAME. Received: {repository!r}."
            ) from error
        self._repository = repository
        self._api = huggingface_hub.HfApi(token=token)

    def push(self, folder: pathlib.Path, private: bool) -> str:
        """Uploads all files of a folder as one commit; returns the address.

        Raises:
          UserError: the token is unknown, or may not write there.
          RunError: the hub cannot be reached, or failed.
        """
        try:
            address = self._api.create_repo(
                self._repository, private=private, exist_ok=True
            )
            self._api.upload_folder(
                repo_id=address.repo_id,
                folder_path=folder,
                commit_message="Export of gpt2-tpu",
            )
        # huggingface_hub raises all of these. A refused upload of a large file is a
        # RuntimeError, whose cause is the refusal.
        except (OSError, RuntimeError, ValueError) as error:
            raise self._translate(error) from error
        return str(address)

    def _translate(self, error: Exception) -> Exception:
        cause = error
        if not isinstance(error, requests.RequestException) and error.__cause__:
            cause = error.__cause__  # type: ignore[assignment]
        status = getattr(getattr(cause, "response", None), "status_code", None)
        where = f"{self._repository} at {self._api.endpoint}"
        if status == 401:
            return UserError(
                "The token of `--push_to_hub` must be known to the hub, which refused "
                f"to write {where}. Set HF_TOKEN, or run `huggingface-cli "
                "login`."
            )
        if status in (403, 404):
            return UserError(
                "The token of `--push_to_hub` must have the right to write to "
                f"{where}. The hub answered {status}. Name a repository of your own, "
                "or take a token with write access."
            )
        # A ValueError carries the hub's complaint about the model card.
        complaint = (
            str(error).strip().partition("\n")[0] if type(error) is ValueError else ""
        )
        reason = str(status or complaint or type(cause).__name__)
        return RunError(
            f"The hub did not accept {where}: {reason}. The export is in "
            f"`--output_dir`; `huggingface-cli upload {self._repository} OUTPUT_DIR` "
            "tries again."
        )
