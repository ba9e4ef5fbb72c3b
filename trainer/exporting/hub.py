"""Uploads a folder to the Hugging Face Hub (HF_ENDPOINT), or says why it cannot."""

import pathlib

import huggingface_hub
import requests
from huggingface_hub.errors import HFValidationError

from configs.errors import RunError, UserError


class Uploader:
    """Uploads to one repository, of which name and token are checked at once.

    Raises:
      UserError: the name is none, or there is no usable token.
    """

    def __init__(self, repository: str):
        token = (huggingface_hub.get_token() or "").strip()
        # Anything else would be in the message of what refuses it.
        if not token or not token.isascii() or not token.isprintable():
            raise UserError(
                "`--push_to_hub` must have a token: set HF_TOKEN, or run "
                "`huggingface-cli login`. Received: "
                f"{'none' if not token else 'one with characters that no token has'}."
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
          UserError: token, name or rights are not right.
          RunError: the hub cannot be reached, or failed.
        """
        try:
            made = self._api.create_repo(
                self._repository, private=private, exist_ok=True
            )
            self._api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                commit_message="Export of gpt2-tpu",
            )
        # What huggingface_hub raises is of all of these. A refused upload of a large
        # file is a RuntimeError, whose cause is the refusal.
        except (OSError, RuntimeError, ValueError) as error:
            raise self._told(error) from error
        return str(made)

    def _told(self, error: Exception) -> Exception:
        cause = error
        if not isinstance(error, requests.RequestException) and error.__cause__:
            cause = error.__cause__  # type: ignore[assignment]
        status = getattr(getattr(cause, "response", None), "status_code", None)
        where = f"{self._repository} at {self._api.endpoint}"
        if status == 401:
            return UserError(
                "The token of `--push_to_hub` must be one that the hub knows. It "
                f"refused to write {where}. Set HF_TOKEN, or run `huggingface-cli "
                "login`."
            )
        if status in (403, 404):
            return UserError(
                "The token of `--push_to_hub` must have the right to write to "
                f"{where}. The hub answered {status}. Name a repository of your own, "
                "or take a token with write access."
            )
        # A ValueError is of what is uploaded: the hub's words on the card.
        words = (
            str(error).strip().partition("\n")[0] if type(error) is ValueError else ""
        )
        said = str(status or words or type(cause).__name__)
        return RunError(
            f"The hub did not take {where}: {said}. The export is in `--output_dir`; "
            f"`huggingface-cli upload {self._repository} OUTPUT_DIR` tries again."
        )
