"""The Hugging Face Hub by its own library: what would be sent, the card as the Hub reads it, and a snapshot from its cache."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import rdc
from rdc.errors import CheckpointError
from tests.evaluation_models import save_tiny

hub = pytest.importorskip("huggingface_hub")
FILES = {"model.safetensors", "model.json", "README.md"}


@pytest.fixture
def tiny(tmp_path):
    return rdc.load(save_tiny(tmp_path)[0])


@pytest.fixture
def sent(monkeypatch):
    """What the real ``HfApi.upload_folder`` hands to the calls that would reach the network."""
    record: dict[str, object] = {"files": {}}

    def create_repo(self, repo_id, **options):
        record.update(repo=repo_id, repo_options=options, token=self.token)

    def create_commit(self, repo_id, operations, **options):
        assert repo_id == record["repo"]
        for operation in operations:
            with operation.as_file() as file:  # the folder is temporary: read now
                record["files"][operation.path_in_repo] = file.read()
        record.update(message=options["commit_message"])
        return hub.CommitInfo(
            commit_url=f"https://huggingface.co/{repo_id}/commit/1", commit_message="", commit_description="", oid="1"
        )

    monkeypatch.setattr(hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(hub.HfApi, "create_commit", create_commit)
    # the Hub looks the card over before the commit
    monkeypatch.setattr(hub.HfApi, "_validate_yaml", lambda self, content, **more: None, raising=False)
    return record


def same(one, other):
    x = torch.rand(2, *one.image_shape, generator=torch.Generator().manual_seed(0))
    return torch.equal(one(x), other(x)) and one.describe() == other.describe() and one.class_names == other.class_names


def test_what_would_be_sent(tiny, sent, tmp_path):
    changed = tiny.with_(levels="log:2:0.5:2:flat", logit_scale=0.5)
    address = rdc.push_to_hub(
        changed, "me/tiny", token="secret", commit_message="First", private=True, info={"licence": "MIT"}
    )
    assert address == "https://huggingface.co/me/tiny/commit/1" and sent["message"] == "First"
    assert sent["repo_options"] == {"private": True, "exist_ok": True} and sent["token"] == "secret"
    assert set(sent["files"]) == FILES and not any(b"secret" in content for content in sent["files"].values())
    described = json.loads(sent["files"]["model.json"])
    assert described["sha256"] == hashlib.sha256(sent["files"]["model.safetensors"]).hexdigest()
    for name, content in sent["files"].items():  # what was sent is a classifier
        (tmp_path / "back").mkdir(exist_ok=True)
        (tmp_path / "back" / name).write_bytes(content)
    assert same(rdc.from_pretrained(tmp_path / "back"), changed)


def test_the_card_is_one_that_the_hub_reads(tiny, tmp_path):
    folder = rdc.save_pretrained(
        tiny, tmp_path / "a", info={"licence": "MIT", "dataset": "a: b # {c}\n---\nlicense: x"}
    )
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.library_name == "rdc" and card.data.pipeline_tag == "image-classification"
    assert card.data.tags == ["rdc", "adversarial-robustness"] and card.data.to_dict().get("license") is None
    assert "Licence: MIT" in card.text and "4 classes" in card.text and "rdc.from_pretrained" in card.text


def test_a_snapshot_from_the_cache(tiny, tmp_path, monkeypatch):
    """Laid out as the library keeps it; offline it answers from there, and the model is the same."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    top = tmp_path / "cache" / "models--me--tiny"
    rdc.save_pretrained(tiny, top / "snapshots" / "0")
    (top / "refs").mkdir()
    (top / "refs" / "main").write_text("0")
    assert same(rdc.from_pretrained("me/tiny", cache_dir=tmp_path / "cache"), tiny)
    with pytest.raises(CheckpointError, match="me/other: could not be downloaded from the Hugging Face Hub") as raised:
        rdc.from_pretrained("me/other", cache_dir=tmp_path / "cache")
    assert "\n" not in str(raised.value) and not list(Path(tmp_path).glob("cache/models--me--other/snapshots/*"))
