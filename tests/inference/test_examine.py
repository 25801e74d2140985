"""Networks that were trained elsewhere, examined: from the command line and from Python."""

import copy
import json
from functools import cache

import pytest
import timm
import torch
from torch import nn

import hem
from hem.cli.foreign import foreign
from hem.datamodules import DigitsDataModule
from hem.inference.examine import Reordered
from hem.networks import LeNet, Named, Normalize
from hem.networks.order import order_of
from hem.networks.weights import Rows

CLASSES = [str(k) for k in range(10)]
COMMON = ("--data", "DigitsDataModule", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
          "--trainer.logger", "false")  # fmt: skip
SHORT = {
    "rejection": {"unknown": {"unrecognisable": ["uniform"]}, "scores": ["msp"], "corruptions": ["brightness"],
                  "known_images": 20, "max_images": 20, "attack_eps": None},
    "corruption": {"corrupted": {"class_path": "hem.datamodules.ComputedCorruptions",
                                 "init_args": {"corruptions": ["brightness"], "severities": [1], "images": 20}}},
    "adversarial": {"attacks": [{"class_path": "PGD", "init_args": {"objective": "ce"}}], "linf": [0.03], "l2": [],
                    "steps": 1, "images": 20, "autoattack_eps": [], "square_queries": 0},
}  # fmt: skip


@cache
def learnt() -> nn.Module:
    """A network of timm's for grey images, its last layer fitted to the digits by least squares."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=10, in_chans=1).eval()
    head = net.get_classifier()
    images, index = DigitsDataModule().part("train")
    input, target = images.take(index)
    with torch.no_grad():
        features = net.forward_head(net.forward_features((input.float() / 255 - 0.5) / 0.5), pre_logits=True)
        mean, scale = features.mean(0), features.std()
        one_hot = nn.functional.one_hot(target, 10).float() - 0.1
        features = (features - mean) / scale
        gram = features.T @ features + 1e-3 * len(features) * torch.eye(features.shape[1])
        weight = torch.linalg.solve(gram, features.T @ one_hot).T / scale
        head.weight.copy_(weight)
        head.bias.copy_(-weight @ mean)
    return net


def colours() -> nn.Module:
    """The same, of one's own."""
    return copy.deepcopy(learnt())


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Its state dict, as someone would hand it on."""
    path = tmp_path_factory.mktemp("elsewhere") / "published.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in colours().state_dict().items()}}, path)
    return path


@pytest.fixture(scope="module")
def accuracy():
    """Its accuracy on the test part, counted here."""
    data = DigitsDataModule()
    data.setup("test")
    images, index = data.part("test")
    input, target = images.take(index)
    net = colours().eval()
    with torch.no_grad():
        found = (net((input.float() / 255 - 0.5) / 0.5).argmax(1) == target).float().mean().item()
    assert found > 0.3  # so that another order or normalisation would show
    return found


def figures(folder) -> dict[str, float]:
    return json.loads((folder / "results.json").read_text())["metrics"]


def test_a_network_from_elsewhere_is_tested_in_one_command(file, accuracy, hem_command, tmp_path):
    """With its own normalisation, which is not the data's, and filed under its own name."""
    outcome = hem_command("test", "--net", "test_resnet", "--weights", file, *COMMON, "--run_dir", tmp_path)
    assert outcome.code == 0, outcome.err
    assert "normalised as these weights expect it: mean=[0.5], std=[0.5]" in outcome.out
    assert figures(tmp_path)["test/accuracy"] == pytest.approx(accuracy, abs=0.01)
    assert json.loads((tmp_path / "results.json").read_text())["loss"] == "test_resnet-published"


def test_an_examination_by_its_config(file, accuracy, hem_command, tmp_path):
    outcome = hem_command(
        "test", "--net", "test_resnet", f"--weights={file}", "--config", "configs/evaluate/corruption.yaml", *COMMON,
        "--model.corrupted.corruptions", "[brightness]", "--model.corrupted.severities", "[1]", "--run_dir", tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = figures(tmp_path)
    assert "test/corruption/brightness/1" in found
    assert found["test/accuracy"] == pytest.approx(accuracy, abs=0.01)


def test_results_of_another_file_of_that_name_are_kept(file, accuracy, hem_command, tmp_path):
    """Weights come without a checkpoint here: it is the network itself that results belong to."""
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    state = colours().state_dict()
    torch.save({name: value.flip(0) if len(value.shape) == 2 else value for name, value in state.items()}, other)
    common = (*COMMON, "--run_dir", tmp_path / "run")
    assert hem_command("test", "--net", "test_resnet", "--weights", file, *common).code == 0
    assert "are kept in" not in hem_command("test", "--net", "test_resnet", "--weights", file, *common).out
    outcome = hem_command("test", "--net", "test_resnet", "--weights", other, *common)
    assert "are of other weights, options or images: they are kept in" in outcome.out
    kept = json.loads(next((tmp_path / "run").glob("results@*.json")).read_text())
    assert kept["metrics"]["test/accuracy"] == pytest.approx(accuracy, abs=0.01)
    assert figures(tmp_path / "run")["test/accuracy"] != kept["metrics"]["test/accuracy"]


def test_the_order_of_its_classes(accuracy, hem_command, tmp_path):
    """A network whose logits are in another order, with some of classes that the data has not."""
    order = [*reversed(CLASSES), "nothing", "other"]
    state = colours().state_dict()
    (name,) = (key for key, value in state.items() if value.shape == (10, learnt().num_features))
    bias = name.replace("weight", "bias")
    state[name] = torch.cat([state[name].flip(0), torch.zeros(2, learnt().num_features)])
    state[bias] = torch.cat([state[bias].flip(0), torch.full((2,), 100.0)])  # would win
    torch.save(state, tmp_path / "net.pth")
    (tmp_path / "classes.txt").write_text("\n".join(order) + "\n")
    command = ("test", "--net", "test_resnet", "--weights", tmp_path / "net.pth", *COMMON)
    outcome = hem_command(*command, "--class_order", tmp_path / "classes.txt", "--run_dir", tmp_path / "a")
    assert outcome.code == 0, outcome.err
    assert figures(tmp_path / "a")["test/accuracy"] == pytest.approx(accuracy, abs=0.01)
    outcome = hem_command(*command, "--run_dir", tmp_path / "b")
    assert outcome.code == 1
    assert "got one with new layers (head.weight, head.bias)" in outcome.err
    assert "--class_order" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("fit", "--net", "resnet18"), r"got it with fit: .*--model.net.name resnet18"),
        (("test", "--weights", "a.pth"), "beside --weights and --class_order, got none: add --net"),
        (("test", "--net", "resnet18", "--run", "runs/a"), "Expected --net or --run, got both"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        foreign(arguments)


def test_orders_of_classes(tmp_path):
    (tmp_path / "map.yaml").write_text("{cat: 3, dog: 1}")
    assert order_of(str(tmp_path / "map.yaml"), ["cat", "dog"]) == ([3, 1], None)
    (tmp_path / "list.json").write_text('["dog", "cat"]')
    assert order_of(str(tmp_path / "list.json"), ["cat", "dog"]) == ([1, 0], 2)
    with pytest.raises(ValueError, match="none for 'cow'"):
        order_of(["cat", "dog"], ["cow"])
    with pytest.raises(ValueError, match="got 'cat' twice"):
        order_of(["cat", "cat"], ["cat"])
    with pytest.raises(FileNotFoundError, match="got nothing there"):
        order_of("missing.txt", ["cat"])
    for text, words in (
        ("{cat: -1, dog: 1}", "got -1 for 'cat'"),
        ("{cat: one, dog: 1}", "got 'one' for 'cat'"),
        ("{cat: 1, dog: 1}", "got the same for cat and dog"),
    ):
        (tmp_path / "map.yaml").write_text(text)
        with pytest.raises(ValueError, match=words):
            order_of(str(tmp_path / "map.yaml"), ["cat", "dog"])
    images, net = torch.rand(2, 1, 8, 8), LeNet(6, image_size=(8, 8)).eval()
    torch.testing.assert_close(Reordered(net, Rows([5, 3]))(images), net(images)[:, [5, 3]], rtol=0, atol=0)
    for rows, words in ((Rows([6, 3]), "7 or more logits, .*got 6"), (Rows([1, 0], 2), "Expected 2 logits, .*got 6")):
        with pytest.raises(ValueError, match=words):
            Reordered(net, rows)(images)


# -- from Python -------------------------------------------------------------------------------------------


class Elsewhere(nn.Module):
    """A network that normalises itself, trained by who knows what."""

    def __init__(self) -> None:
        super().__init__()
        self.net = colours()

    def forward(self, input):
        return self.net((input - 0.5) / 0.5)


def test_any_module_is_examined_and_left_as_it_was(accuracy, tmp_path, capsys):
    net = Elsewhere().train()
    frozen = next(net.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = hem.evaluate(
        net,
        DigitsDataModule(),
        ["clean", "rejection", "corruption", "adversarial"],
        options=SHORT,
        folder=tmp_path,
        trainer={"accelerator": "cpu"},
    )
    assert "as they are in [0, 1]" in capsys.readouterr().out
    assert list(found) == ["clean", "rejection", "corruption", "adversarial"]
    for metrics in found.values():
        assert metrics
    assert found["clean"]["test/accuracy"] == pytest.approx(accuracy, abs=0.01)
    assert any(key.startswith("test/auroc/msp") for key in found["rejection"])
    assert "test/corruption/brightness/1" in found["corruption"]
    assert (tmp_path / "corruption" / "corruption.csv").is_file()
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [p is not frozen for p in net.parameters()]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_timms_networks_bring_their_normalisation(accuracy):
    found = hem.evaluate(colours(), DigitsDataModule(), trainer={"accelerator": "cpu"})
    assert found["clean"]["test/accuracy"] == pytest.approx(accuracy, abs=0.01)


def test_a_named_network_brings_its_normalisation_and_ours_can_be_given(file, accuracy, capsys):
    net = Named("test_resnet", 10, 1, weights=str(file))
    found = hem.evaluate(net, DigitsDataModule(), trainer={"accelerator": "cpu"})
    assert "normalised by mean=[0.5], std=[0.5]" in capsys.readouterr().out
    assert found["clean"]["test/accuracy"] == pytest.approx(accuracy, abs=0.01)
    hem.evaluate(net, DigitsDataModule(), normalize=Normalize([0.3], [0.4]), trainer={"accelerator": "cpu"})
    assert "normalised by mean=[0.3], std=[0.4]" in capsys.readouterr().out


def test_a_network_that_started_from_other_classes_keeps_its_last_layer(file):
    """A task would begin it anew, and random weights would be measured."""
    net = Named("test_resnet", 10, 1, weights=str(file))
    net.start = net.start._replace(class_names=tuple(f"letter {k}" for k in range(10)))
    before, began = net.head.weight.clone(), net.start
    hem.evaluate(net, DigitsDataModule(), trainer={"accelerator": "cpu"})
    torch.testing.assert_close(net.head.weight, before, rtol=0, atol=0)
    assert net.start is began


def test_what_cannot_be_examined_is_a_sentence():
    data = DigitsDataModule()
    with pytest.raises(ValueError, match="Unknown examination 'rejecton'; did you mean 'rejection'"):
        hem.evaluate(LeNet(image_size=(8, 8)), data, ["rejecton"])
    with pytest.raises(ValueError, match=r"Expected logits of shape \(N, 10\), .* got \(1, 7\): .* class_order"):
        hem.evaluate(LeNet(7, image_size=(8, 8)), data)
    order = [*reversed(CLASSES), "other"]
    found = hem.evaluate(LeNet(11, image_size=(8, 8)), data, class_order=order, trainer={"accelerator": "cpu"})
    assert 0 <= found["clean"]["test/accuracy"] <= 1
