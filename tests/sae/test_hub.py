"""SAEs come from a hub's cache and go to it."""

from __future__ import annotations

import fnmatch
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from foreign import CASES
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from own_saes import one_line, ours

from sae import SAE
from sae.formats import finding


@dataclass
class Hub:
    """Stands in for the hub: repositories are folders, and what is fetched and pushed is written down."""

    remote: Path
    cache: Path
    fetched: list[str] = field(default_factory=list)
    pushed: dict[str, Path] = field(default_factory=dict)
    created: list[tuple[str, bool]] = field(default_factory=list)
    offline: bool = False

    def model_info(self, name: str, revision: str | None = None) -> SimpleNamespace:
        if self.offline:
            raise ConnectionError("no route to the hub")
        if not (self.remote / name).is_dir() or revision == "gone":
            raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # pyright: ignore
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in finding.names(self.remote / name)])

    def snapshot_download(
        self, name: str, revision: str | None = None, allow_patterns: Any = None, local_files_only: bool = False
    ) -> str:
        folder = self.cache / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
        if local_files_only:
            if not folder.is_dir():
                raise LocalEntryNotFoundError("nothing cached")
            return str(folder)
        for file in finding.names(self.remote / name):
            if (self.remote / name / file).is_file() and any(fnmatch.fnmatch(file, one) for one in allow_patterns):
                self.fetched.append(file)
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.remote / name / file, folder / file)
        return str(folder)

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
        if self.offline:
            raise ConnectionError("no route to the hub")
        self.created.append((name, private))

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        shutil.copytree(folder_path, self.remote / repo_id)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    made = Hub(tmp_path / "remote", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    monkeypatch.chdir(tmp_path)
    return made


def test_only_the_files_of_the_chosen_sae_are_fetched(hub: Hub) -> None:
    made = CASES["gemma_repository"](hub.remote / "google")
    sae = SAE.load("google/gemma-scope-2b-pt-res", subfolder="layer_12/width_16k/average_l0_82")
    assert hub.fetched == ["layer_12/width_16k/average_l0_82/params.npz"]
    assert (sae.site, sae.metadata["model_name"]) == ("resid_post.12", "google/gemma-2-2b")
    torch.testing.assert_close(sae(made.x).detach(), made.expected, rtol=1e-5, atol=1e-4)


def test_several_saes_of_a_repository_are_listed_before_anything_is_fetched(hub: Hub) -> None:
    CASES["gemma_repository"](hub.remote / "google")
    with pytest.raises(ValueError, match="google/gemma-scope-2b-pt-res holds 2 SAEs") as error:
        SAE.load("google/gemma-scope-2b-pt-res")
    one_line(error.value)
    assert hub.fetched == []


def test_what_lies_above_a_hookpoint_is_fetched_with_it(hub: Hub) -> None:
    CASES["sparsify_root"](hub.remote / "EleutherAI" / "sae-pythia-70m-32k")
    sae = SAE.load("EleutherAI/sae-pythia-70m-32k", subfolder="layers.3")
    assert sorted(hub.fetched) == ["config.json", "layers.3/cfg.json", "layers.3/sae.safetensors"]
    assert (sae.site, sae.metadata["model_name"]) == ("resid_post.3", "EleutherAI/pythia-70m")


def test_without_a_network_the_cache_serves_and_nothing_else(hub: Hub) -> None:
    CASES["sparsify_root"](hub.remote / "a" / "b")
    SAE.load("a/b", subfolder="layers.3")
    hub.offline = True
    assert SAE.load("a/b", subfolder="layers.3").site == "resid_post.3"
    with pytest.raises(OSError, match=r"`c/d` is no local folder, and the hub cannot be reached \(no route") as error:
        SAE.load("c/d")
    one_line(error.value)


def test_an_unknown_repository_or_revision_is_named(hub: Hub) -> None:
    for name, revision in (("a/b", None), ("google/x", "gone")):
        with pytest.raises(FileNotFoundError, match=f"`{name}` is no local folder, and the hub has no such") as error:
            SAE.load(name, revision=revision)
        one_line(error.value)


def test_a_local_folder_goes_before_the_hub(hub: Hub) -> None:
    made = CASES["saelens_topk"](Path("org/name"))
    hub.offline = True
    torch.testing.assert_close(SAE.load("org/name")(made.x), SAE.load(made.path)(made.x))


def test_a_pushed_sae_has_a_card_and_comes_back(hub: Hub) -> None:
    sae, x = ours("topk")
    assert sae.push_to_hub("me/my-sae", subfolder="resid_post.3", private=True) == "https://hub/me/my-sae/commit/1"
    assert hub.created == [("me/my-sae", True)]
    card = (hub.remote / "me/my-sae" / "README.md").read_text()
    for words in ("library_name: saelens", "base_model: EleutherAI/pythia-70m", "| site | resid_post.3 |", "| k | 4 |",
                  'SAE.load("me/my-sae", subfolder="resid_post.3")', "| text | corpus.txt |"):  # fmt: skip
        assert words in card
    assert torch.equal(SAE.load("me/my-sae")(x), sae(x))


def test_a_push_that_cannot_be_is_refused_in_one_line(hub: Hub) -> None:
    sae, _ = ours("gated")
    with pytest.raises(ValueError, match="`my-sae` is no repository's name, expected org/name"):
        sae.push_to_hub("my-sae")
    with pytest.raises(ValueError, match="sparsify has no architecture `gated`"):
        sae.push_to_hub("me/my-sae", format="sparsify")
    hub.offline = True
    with pytest.raises(OSError, match="the hub cannot be reached") as error:
        sae.push_to_hub("me/my-sae")
    one_line(error.value)
    assert not hub.remote.exists()
