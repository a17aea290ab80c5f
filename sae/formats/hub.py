"""SAEs on the Hugging Face hub: fetched file by file, and pushed with a model card.

Enters: a repository's name (`org/name`). Leaves: a local folder that holds one SAE and the configs above it; nothing
else of the repository is downloaded. huggingface_hub is imported here alone.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sae.formats import finding

if TYPE_CHECKING:
    from sae.model import SAE

T = TypeVar("T")
_CLIENTS = ("httpx", "httpx2", "requests", "urllib3")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_name(name: str) -> bool:
    """Tells whether a string looks like a repository's name, `org/name`."""
    return _NAME.fullmatch(name) is not None


def fetch(name: str, subfolder: str | None, revision: str | None) -> tuple[Path, finding.Find]:
    """Downloads the one SAE that `subfolder` names (or that there is) and returns the folder and what to read in it.

    Raises:
        OSError: the hub cannot be reached, or has no such repository.
        ValueError: there are several SAEs; the message lists them.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        siblings = _ask(name, lambda: HfApi().model_info(name, revision=revision)).siblings or []
    except OSError:  # what an earlier call fetched is still there without a network
        folder = _cached(name, revision)
        if folder is None:
            raise
        return folder, finding.choose(finding.find(finding.names(folder)), subfolder, name)
    found = finding.choose(finding.find(file.rfilename for file in siblings), subfolder, name)
    patterns = list(found.files)
    return Path(_ask(name, lambda: snapshot_download(name, revision=revision, allow_patterns=patterns))), found


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def push(sae: SAE, name: str, *, format: str, subfolder: str | None, private: bool, message: str) -> str:
    """Uploads an SAE with a model card and returns the address of the commit."""
    import huggingface_hub

    from sae import formats

    if not is_name(name):
        raise ValueError(f"`{name}` is no repository's name, expected org/name: give both parts")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        formats.save(sae, root / subfolder if subfolder else root, format)
        (root / "README.md").write_text(card(sae, name, format, subfolder), encoding="utf-8")
        api = huggingface_hub.HfApi()
        _ask(name, lambda: api.create_repo(name, private=private, exist_ok=True))
        commit = _ask(name, lambda: api.upload_folder(repo_id=name, folder_path=root, commit_message=message))
    return str(getattr(commit, "commit_url", commit))


def card(sae: SAE, name: str, format: str, subfolder: str | None = None) -> str:
    """Writes the model card: what the SAE reads, how large it is, and how to open it."""
    config, metadata = sae.config, sae.metadata
    model, data = metadata.get("model_name"), metadata.get("data") or {}
    library = "saelens" if format == "saelens" else "glassbox-sae"
    head = ["---", f"library_name: {library}", "tags:", "- sparse-autoencoder", "- interpretability"]
    if isinstance(model, str) and is_name(model):
        head += [f"base_model: {model}"]
    facts: dict[str, Any] = {
        "language model": model,
        "site": ", ".join(metadata.get("sites") or []) or metadata.get("site"),
        "writes": ", ".join(metadata.get("target_sites") or []),
        "architecture": config.architecture,
        "trained as": metadata.get("training_architecture"),
        "latents": config.d_sae,
        "width": config.d_in,
        "k": config.k,
        "text": data.get("source"),
        "tokens of context": data.get("context_tokens"),
        "format": format,
    }
    rows = [f"| {key} | {_cell(value)} |" for key, value in facts.items() if value not in (None, "")]
    chosen = f', subfolder="{subfolder}"' if subfolder else ""
    title = ["---", f"# {name.split('/')[-1]}", "", "A sparse autoencoder trained with Glassbox.", ""]
    use = ["", "```python", "from sae import SAE", "", f'sae = SAE.load("{name}"{chosen})', "```", ""]
    return "\n".join([*head, *title, "| | |", "| --- | --- |", *rows, *use])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _ask(name: str, request: Callable[[], T]) -> T:
    from huggingface_hub import errors

    try:
        return request()
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"`{name}` is no local folder, and the hub has no such repository or revision: correct the name, or log in "
            "if it is private"
        ) from error
    except Exception as error:
        # the hub's client changes between versions, and with it the class of what it raises without a network
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _CLIENTS:
            raise
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise OSError(
            f"`{name}` is no local folder, and the hub cannot be reached ({reason}): give a local folder, or connect "
            "to the network"
        ) from error
