"""Typical mistakes of a new user: one true sentence each, with the mend, and no file left behind.

The parser is called in this process; what it says is jsonargparse's, so a release that says it otherwise fails here.
"""

import pytest

from hem.cli import errors

WHOLE = ("--config", "classification/digits", "--config", "trainer/debug")

# what is typed behind `fit --config classification/digits --config trainer/debug`, and words of the sentence
OPTIONS = {
    "own word for the epochs": ("--epochs 3", ["no option 'epochs'", "'trainer.max_epochs'"]),
    "trainer left out": ("--max_epochs 3", ["no option 'max_epochs'", "'trainer.max_epochs'"]),
    "own word for the rate": ("--lr 0.1", ["no option 'lr'", "'model.optimizer.lr'"]),
    "model left out": ("--loss HEMLoss", ["no option 'loss'", "'model.loss'"]),
    "rate of the task": ("--model.lr 0.1", ["ClassificationTask has no argument 'lr'", "it takes net, loss"]),
    "name of a folder for a loss": ("--model.loss hem", ["unknown loss 'hem'", "did you mean 'HEMLoss'"]),
    "argument of the loss before": ("--model.loss.margin 0.2", ["CrossEntropyLoss has no argument 'margin'"]),
    "value forgotten": ("--model.loss HEMLoss --model.loss.margin", ["--model... stands without a value"]),
    "word for a number": ("--model.loss HEMLoss --model.loss.margin big", ["expects float or auto, got 'big'"]),
    "list for a number": ("--model.loss HEMLoss --model.loss.margin [1,2]", ["expects float or auto, got '[1, 2]'"]),
    "word that is none of a few": ("--model.lr_interval week", ["model.lr_interval expects step or epoch, got 'week'"]),
    "word for the rate": ("--model.optimizer.lr fast", ["model.optimizer.lr expects float", "got 'fast'"]),
    "argument of another optimiser": (
        "--model.optimizer Adam --model.optimizer.nesterov true",
        ["Adam has no argument 'nesterov'", "it takes lr, betas"],
    ),
    "argument of the schedule": ("--model.lr_scheduler.gama 3", ["OneCycleLR has no argument 'gama'", "max_lr"]),
    "name of a data set for a module": ("--data mnist", ["unknown data module 'mnist'", "'MNISTDataModule'"]),
    "half a sample": ("--data.batch_size 32.5", ["data.batch_size expects int, got '32.5'"]),
    "empty value": ("--data.batch_size=", ["data.batch_size expects int, got ''"]),
    "percents": ("--data.val_fraction 10%", ["data.val_fraction expects float, got '10%'"]),
    "one for a list": ("--data.augment hem.datamodules.augment.Cutout", ["data.augment expects a list or null"]),
    "word in a list of numbers": ("--model.loss.weight [1,x]", ["model.loss.weight expects null or a list of numbers"]),
    "null inside a class": ("--model.loss.weight null", ["model.loss.weight cannot be null on the command line"]),
    "null for a part": ("--model.loss null", ["model needs loss", "classification/digits"]),
    "null for a group": ("--trainer null", ["trainer is a group of options", "got 'null'"]),
    "precision that there is not": ("--trainer.precision 8", ["precision expects 64 or 32 or 16", "bf16-mixed"]),
    "word for a seed": ("--seed_everything abc", ["seed_everything expects bool or int, got 'abc'"]),
    "one dash": ("-seed_everything 1", ["got '-seed_everything 1'", "'--seed_everything 1'"]),
    "word of no option": ("extra", ["got 'extra'", "behind its --option"]),
    "misspelt callback": ("--trainer.callbacks+ EarlyStoping", ["unknown callback", "'EarlyStopping'"]),
    "callback without what it needs": ("--trainer.callbacks+ EarlyStopping", ["EarlyStopping needs monitor"]),
    "word for a logger": ("--trainer.logger tensorboard", ["unknown logger", "'TensorBoardLogger'"]),
    "name that libraries share": ("--model.net ResNet", ["could be several classes", "torchvision.models.ResNet"]),
    "class that needs more": ("--model.net torchvision.models.ResNet", ["ResNet needs block, layers", "net.block"]),
    "schedule that needs more": ("--model.lr_scheduler StepLR", ["lr_scheduler needs step_size", "step_size VALUE"]),
    "function for a class": ("--model.net torchvision.models.resnet18", ["--model.net Named --model.net.name NAME"]),
    "config twice": ("--config trainer/debug", ["trainer/debug is given twice"]),
    "config without a name": ("--config", ["Expected a config behind --config"]),
    "config of another task": ("--config segmentation/camvid", ["both whole configs"]),
    "study as a config": ("--config study/quick", ["is a study", "hem study"]),
    "misspelt config": ("--config loss/hemm", ["'loss/hemm'", "did you mean 'loss/hem'"]),
    "half the name of a config": ("--config hem", ["did you mean 'loss/hem'"]),
    "folder of configs": ("--config loss", ["the folder 'loss'", "loss/hem"]),
}


#: words of every rule that rewrites what the parser says, and the mistake below that it answers
CASES = {
    "Multiple subclasses with name": "name that libraries share",
    "dot import path string": "name of a folder for a loss",
    "Option '": "argument of the loss before",
    "does not accept option": "loss at the top",
    "arguments: --": "own word for the epochs",
    "arguments: (": "word of no option",
    "arguments are required": "callback without what it needs",
    "expected one argument": "value forgotten",
    "Unable to load config": "null for a group",
    "Expected an?": "half a sample",
    "Given value": "word for the rate",
}


@pytest.fixture
def answered(monkeypatch):
    """The rules that answer."""
    found = []

    def told(pattern, answer):
        return pattern, lambda said, match: (found.append(pattern), answer(said, match))[1]

    monkeypatch.setattr(errors, "RULES", tuple(told(*rule) for rule in errors.RULES))
    return found


def test_every_rule_has_a_mistake_that_it_answers():
    """Which `test_options` or `test_files` makes."""
    assert [sum(words in pattern for words in CASES) for pattern, _ in errors.RULES] == [1] * len(errors.RULES)
    assert len(CASES) == len(errors.RULES)
    assert set(CASES.values()) <= OPTIONS.keys() | FILES.keys()


def rules(kind):
    """Words of the rules that answer a mistake."""
    return {words for words, mistake in CASES.items() if mistake == kind}


def refused(outcome, words, code=2):
    """One sentence, of these words; no stack."""
    assert outcome.code == code, outcome.err
    for word in words:
        assert word in outcome.err
    assert outcome.err.count("error: ") == 1
    assert len(outcome.err.splitlines()) == 1
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("kind", OPTIONS)
def test_options(kind, hem_command, tmp_path, answered):
    """Options as a new user types them."""
    typed, words = OPTIONS[kind]
    refused(hem_command("fit", *WHOLE, "--run_dir", tmp_path, *typed.split()), words)
    assert all(rule in " ".join(answered) for rule in rules(kind))
    assert not list(tmp_path.iterdir())


COMMANDS = {
    "folder that is not given": ("fit --config classification/folder", ["--data.root FOLDER"]),
    "nothing": ("", ["Expected a command, one of fit, validate, test, predict", "got none"]),
    "another word for fit": ("train", ["got 'train'; did you mean 'fit'"]),
    "an option first": ("--config classification/digits fit", ["got an option first", "Expected a command"]),
    "no config": ("fit", ["the command needs data, model", "--config classification/digits"]),
    "data alone": ("fit --data DigitsDataModule", ["the command needs model"]),
    "task alone": ("fit --model ClassificationTask --data DigitsDataModule", ["model needs net, loss"]),
    "loss alone": ("fit --config loss/hem", ["model needs net"]),
    "trainer alone": ("fit --config trainer/debug", ["the command needs data, model"]),
    "loss first": (
        "fit --config loss/hem --config classification/digits",
        ["classification/digits overrules the loss of loss/hem", "`--config loss/hem` behind it"],
    ),
    "list of nothing": ("configs lossy", ["Expected a folder of configs, got 'lossy'"]),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_commands(kind, hem_command):
    """Commands that lack a part or have them in another order."""
    typed, words = COMMANDS[kind]
    refused(hem_command(*typed.split()), words)


FILES = {
    "tabs": ("model:\n\tinit_args: {}\n", ["indent with spaces, not with tabs", "line 2"]),
    "bracket left open": ("trainer: {max_epochs: 3\n", ["not valid YAML", "line 1"]),
    "empty": ("", ["is empty"]),
    "text": ("just text", ["holds 'just text'"]),
    "key twice": ("trainer:\n  max_epochs: 3\n  max_epochs: 4\n", ["'max_epochs' stands there twice", "line 3"]),
    "argument beside the class": (
        "model: {init_args: {loss: {class_path: HEMLoss, margin: 0.2}}}",
        ["'margin' beside the class_path of model.loss", "init_args: {margin: 0.2}"],
    ),
    "argument of another class": (
        "model: {init_args: {loss: {margin: 0.2}}}",
        ["CrossEntropyLoss has no argument 'margin'"],
    ),
    "loss at the top": ("loss: {class_path: HEMLoss}", ["no option 'loss'", "'model.loss'"]),
    "trainer's at the top": ("max_epochs: 3", ["no option 'max_epochs'", "'trainer.max_epochs'"]),
    "the command as a key": ("fit: {trainer: {max_epochs: 1}}", ["'fit.trainer.max_epochs'", "'trainer.max_epochs'"]),
    "list for a number": ("data: {init_args: {batch_size: [64]}}", ["data.batch_size expects int, got '[64]'"]),
    "null for the task": ("model: null", ["the command needs model"]),
    "number with a letter": (
        "model: {init_args: {optimizer: {class_path: SGD, init_args: {lr: 1e-2x}}}}",
        ["model.optimizer.lr expects float", "got '1e-2x'"],
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(kind, hem_command, tmp_path, answered):
    """The mistakes of a file; it is named where it cannot be read."""
    text, words = FILES[kind]
    config = tmp_path / "config.yaml"
    config.write_text(text)
    refused(hem_command("fit", *WHOLE, "--config", config, "--run_dir", tmp_path / "run"), words)
    assert all(rule in " ".join(answered) for rule in rules(kind))


def test_null_for_a_number(hem_command, tmp_path):
    """The parser lets null through for any type; Python's answer to it would be about '<'."""
    outcome = hem_command("fit", *WHOLE, "--run_dir", tmp_path, "--data.batch_size", "null")
    refused(outcome, ["data.batch_size expects int, got null"], code=1)


TRAINER = {
    "no batches": ("limit_train_batches 0", ["trainer.limit_train_batches expects more than 0, got 0"]),
    "no steps": ("accumulate_grad_batches 0", ["trainer.accumulate_grad_batches expects more than 0"]),
    "never validated": ("check_val_every_n_epoch 0", ["trainer.check_val_every_n_epoch expects more than 0"]),
    "no checkpoints": ("enable_checkpointing false", ["trainer.enable_checkpointing expects true", "fast_dev_run"]),
    "nothing but steps": ("barebones true", ["trainer.barebones expects false", "fast_dev_run"]),
    "less than a batch": (
        "limit_val_batches 0.001",
        ["Expected one batch at least by trainer.limit_val_batches, got 0.001 of 3", "a number of batches"],
    ),
    "accelerator that there is not": ("accelerator tpuu", ["accelerator='tpuu'"]),
}


@pytest.mark.parametrize("kind", TRAINER)
def test_trainer(kind, hem_command, tmp_path):
    """What the trainer would answer with a division by zero, or with the name of a callback of ours."""
    typed, words = TRAINER[kind]
    refused(hem_command("fit", *WHOLE, "--run_dir", tmp_path, *f"--trainer.{typed}".split()), words, code=1)


def test_a_library_divides_by_zero(hem_command, tmp_path):
    """What no rule foresees is a sentence as well: the kind, the place, what it says."""
    schedule = ("--model.lr_scheduler", "CosineAnnealingLR", "--model.lr_scheduler.T_max", "0")
    outcome = hem_command("fit", *WHOLE, *schedule, "--run_dir", tmp_path, "--trainer.enable_progress_bar", "false")
    refused(outcome, ["ZeroDivisionError in ", ", line ", "HEM_TRACEBACK=1"], code=1)


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_random_weights_are_not_measured(command, hem_command, tmp_path):
    """Without a checkpoint the figures of random weights would be filed as those of a loss."""
    outcome = hem_command(command, *WHOLE, "--run_dir", tmp_path)
    refused(outcome, [f"{command} needs a trained network", "--ckpt_path best"], code=1)
    assert not list(tmp_path.iterdir())
