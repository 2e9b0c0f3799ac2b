"""Optimisers, schedules, averaged weights and trainable layers, against PyTorch's own or explicit computations."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR
from torch.testing import assert_close
from torchvision.models import resnet18
from torchvision.ops import StochasticDepth

from scripts.core.config import Config
from scripts.core.errors import DataError, Interrupted, StorageError
from scripts.core.paths import RunPaths
from scripts.data_handler.tasks import MULTI_LABEL_TASK, SINGLE_LABEL_TASK
from scripts.models.weights import load_best_weights
from scripts.trainer import checkpoint
from scripts.trainer.checkpoint import load_checkpoint, require_space, restore, stored_copies
from scripts.trainer.fit import begin_training
from scripts.trainer.optimisation import (
    Rates,
    ema_decay_of,
    make_optimizer,
    make_schedule,
    parameter_groups,
    select_trainable,
    set_rates,
    set_training_mode,
)
from scripts.trainer.step import train_epoch, training_losses, training_step, validate
from tests.trainer.toys import (
    CONFIG,
    CPU,
    HEAD,
    NEVER,
    StopAfter,
    examples,
    outcome,
    plan_for,
    record,
    small_network,
    train,
)

FULL_CONFIG = replace(
    CONFIG,
    optimizer="adamw",
    schedule="onecycle",
    decay_params="weights",
    label_smoothing=0.1,
    class_weights="balanced",
    ema_decay=0.99,
    grad_clip=1.0,
    mixup_alpha=0.2,
    cutmix_alpha=1.0,
    checkpoint_every=NEVER,
)


# schedules


def rates_of_torch(
    make_scheduler: Callable[[Optimizer], LRScheduler], optimizer: Optimizer, num_steps: int
) -> list[tuple[float, float]]:
    """Learning rate and momentum of every step, as a scheduler of PyTorch sets them."""
    scheduler, rates = make_scheduler(optimizer), []
    for _ in range(num_steps):
        (group,) = optimizer.param_groups
        rates.append((group["lr"], group["betas"][0] if "betas" in group else group["momentum"]))
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SequentialLR warns of its own use of a scheduler
            scheduler.step()
    return rates


def one_parameter() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(1))]


@pytest.mark.parametrize("warmup_epochs", [0, 1, 2.5])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("steps_per_epoch", [3, 7])
def test_one_cycle_is_that_of_pytorch_for_rate_and_momentum(warmup_epochs, optimizer, steps_per_epoch):
    config = Config(epochs=10, lr=0.1, schedule="onecycle", warmup_epochs=warmup_epochs)
    steps = 10 * steps_per_epoch

    def one_cycle(own: Optimizer) -> OneCycleLR:
        return OneCycleLR(own, 0.1, total_steps=steps, pct_start=warmup_epochs / 10 or 0.3)

    own = {"sgd": SGD(one_parameter(), lr=9, momentum=0.5), "adamw": AdamW(one_parameter(), lr=9)}[optimizer]
    schedule = make_schedule(config, steps)
    found, expected = [schedule(step) for step in range(steps)], rates_of_torch(one_cycle, own, steps)
    assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=1e-9)
    assert max(rates.lr for rates in found) <= 0.1
    assert all(0.85 - 1e-9 <= rates.momentum <= 0.95 + 1e-9 for rates in found)


@pytest.mark.parametrize("warmup", [1, 3])
def test_warm_up_and_cosine_are_those_of_pytorch(warmup):
    config = Config(epochs=5, lr=0.1, schedule="cosine", warmup_epochs=warmup)
    steps, rising = 5 * 4, 4 * warmup

    def warm_up_then_cosine(own: Optimizer) -> SequentialLR:
        parts = (
            LinearLR(own, start_factor=1 / (rising + 1), total_iters=rising),
            CosineAnnealingLR(own, steps - rising),
        )
        return SequentialLR(own, list(parts), [rising])

    schedule = make_schedule(config, steps)
    expected = rates_of_torch(warm_up_then_cosine, SGD(one_parameter(), lr=0.1, momentum=0.9), steps)
    assert_close(torch.tensor([schedule(step) for step in range(steps)]), torch.tensor(expected), rtol=1e-6, atol=1e-9)


def test_without_warm_up_the_cosine_starts_at_the_rate_and_a_constant_one_stays():
    cosine = make_schedule(Config(epochs=4, lr=0.008), 40)
    assert [cosine(step).lr for step in (0, 20)] == pytest.approx([0.008, 0.004], abs=1e-12)
    constant = make_schedule(Config(epochs=4, lr=0.008, schedule="constant", warmup_epochs=1), 40)
    assert [constant(step).lr for step in (0, 9, 10, 39)] == pytest.approx([0.008 / 11, 0.08 / 11, 0.008, 0.008])


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
def test_rates_are_pure_functions_of_the_step(schedule):
    config = Config(epochs=4, schedule=schedule, warmup_epochs=0.5)
    in_order = [make_schedule(config, 20)(step) for step in range(20)]
    shuffled, rates = random.Random(1).sample(range(20), 20), make_schedule(config, 20)
    assert [rates(step) for step in shuffled] == [in_order[step] for step in shuffled]


@pytest.mark.parametrize("momentum", [0.0, 0.03, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_the_momentum_of_one_cycle_stays_valid_for_any_middle_and_any_number_of_steps(momentum, num_steps):
    rates = make_schedule(Config(epochs=1, schedule="onecycle", momentum=momentum), num_steps)
    assert all(0 <= rates(step).momentum < 1 and rates(step).lr > 0 for step in range(num_steps))


# optimisers


def test_norms_and_biases_are_not_decayed_and_every_trainable_parameter_is_in_one_group():
    model = resnet18(num_classes=5)
    model.conv1.weight.requires_grad_(False)

    decayed, others = parameter_groups(model, 0.1, "weights")

    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    listed = [names[parameter] for group in (decayed, others) for parameter in group["params"]]
    assert sorted(listed) == sorted(set(names.values()) - {"conv1.weight"})
    assert all(
        ".bn" in name or "bn1" in name or "downsample.1" in name or "bias" in name
        for name in listed[-len(others["params"]) :]
    )
    assert not any("bn" in names[parameter] or "bias" in names[parameter] for parameter in decayed["params"])
    (everything,) = parameter_groups(model, 0.1, "all")
    assert len(everything["params"]) == len(listed)


def test_the_optimizer_has_the_settings():
    config = Config(optimizer="adamw", lr=0.01, momentum=0.8, weight_decay=0.05)
    adamw = make_optimizer(small_network(), config, CPU)
    assert isinstance(adamw, AdamW)
    (group,) = adamw.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.01, (0.8, 0.999), 0.05)
    sgd = make_optimizer(small_network(), replace(config, optimizer="sgd", nesterov=True), CPU)
    assert isinstance(sgd, SGD)
    (group,) = sgd.param_groups
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.8, True, 0.05)


@pytest.mark.parametrize(("optimizer", "momenta"), [("sgd", {"momentum": 0.7}), ("adamw", {"betas": (0.7, 0.999)})])
def test_a_step_takes_its_rates_in_every_group(optimizer, momenta):
    own = make_optimizer(small_network(), Config(optimizer=optimizer, decay_params="weights"), CPU)
    set_rates(own, Rates(lr=0.03, momentum=0.7))
    assert len(own.param_groups) == 2
    assert all(momenta.items() <= group.items() and group["lr"] == 0.03 for group in own.param_groups)


@pytest.mark.parametrize(("grad_clip", "norm"), [(0.5, 0.5), (1e9, None), (0.0, None)])
def test_a_gradient_above_the_largest_norm_is_scaled_to_it(grad_clip, norm):
    model, (images, targets) = small_network(), batch()
    training_step(model, SGD(model.parameters(), lr=0.0), images, targets)
    before = gradient(model)
    training_step(model, SGD(model.parameters(), lr=0.0), images, targets, grad_clip=grad_clip)

    assert before.norm() > 0.5
    assert_close(gradient(model), before if norm is None else before * norm / before.norm(), rtol=1e-4, atol=1e-6)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(8, 3, 8, 8, generator=generator), F.one_hot(torch.arange(8) % 2, 2).float()


def gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


# the loss


def test_smoothed_targets_give_the_loss_of_pytorch():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([0, 1, 2, 3, 0, 1])
    split = replace(examples(6), targets=SINGLE_LABEL_TASK.targets(classes, 4))
    losses = training_losses(split, Config(label_smoothing=0.2))
    assert_close(losses(logits, split.targets).mean(), F.cross_entropy(logits, classes, label_smoothing=0.2))


def test_each_of_several_labels_is_smoothed_towards_a_half():
    smoothed = MULTI_LABEL_TASK.smooth(torch.tensor([[0.0, 1.0, 0.5]]), 0.2)
    assert_close(smoothed, torch.tensor([[0.1, 0.9, 0.5]]))


def test_balanced_weights_are_those_of_scikit_learn():
    classes = np.array([0] * 70 + [1] * 20 + [2] * 10)
    weights = SINGLE_LABEL_TASK.class_weights(SINGLE_LABEL_TASK.targets(torch.from_numpy(classes), 3))
    assert_close(
        weights.double().numpy(), compute_class_weight("balanced", classes=np.arange(3), y=classes), rtol=1e-6, atol=0
    )


def test_a_class_without_images_weighs_one():
    weights = SINGLE_LABEL_TASK.class_weights(SINGLE_LABEL_TASK.targets(torch.tensor([0, 0, 0, 2]), 3))
    assert_close(weights, torch.tensor([4 / 9, 1.0, 4 / 3]))


def test_a_label_weighs_as_many_times_as_there_are_images_without_it_for_each_with_it():
    rows = torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    weights = MULTI_LABEL_TASK.class_weights(rows)
    assert weights.tolist() == [3.0, 1.0, 1.0]  # no image or every image has the others
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    expected = F.binary_cross_entropy_with_logits(logits, rows, pos_weight=weights)
    assert_close(MULTI_LABEL_TASK.losses(logits, rows, weights).mean(), expected)


def test_the_training_loss_is_weighted_and_that_of_the_validation_is_plain(tmp_path):
    split = examples(20)
    targets = split.targets.clone()
    targets[:15], targets[15:] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    split = replace(split, targets=targets)
    logits = torch.tensor([[0.0, 2.0]]).repeat(20, 1)

    weighted = training_losses(split, Config(class_weights="balanced"))(logits, targets)
    assert_close(weighted.mean(), F.cross_entropy(logits, targets.argmax(1), torch.tensor([20 / 30, 20 / 10])))

    config = replace(CONFIG, epochs=1, class_weights="balanced", label_smoothing=0.3)
    model = small_network()
    _, result = train(tmp_path, config, model=model, splits=(split, split))
    assert result.best.val_loss == validate(model, split, precision="fp32").loss


# trainable layers


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_linear_probe_changes_the_head_only(tmp_path, optimizer):
    model = small_network()
    before = copy.deepcopy(model.state_dict())
    train(tmp_path, replace(CONFIG, train_layers="head", optimizer=optimizer), model=model)

    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{HEAD}.weight", f"{HEAD}.bias"}  # not even the running statistics of the normalisation


@pytest.mark.usefixtures("tiny_network", "no_reports")
def test_a_linear_probe_of_a_run_keeps_all_but_the_head_of_its_weights(in_process, make_npz):
    data, start, found = make_npz(), "none", []
    for train_layers in ("all", "head"):
        folder = in_process.folder / train_layers
        settings = ("--optimizer", "adamw", "--ema_decay", "0.9", "--epochs", "1", "--batch_size", "16")
        places = ("--dataset", data, "--weights", start, "--output_dir", folder)
        done = in_process(*places, *settings, "--train_layers", train_layers)
        assert done.returncode == 0, done.stderr
        (path,) = folder.rglob("best_model.pth")
        start = str(path)
        found.append(torch.load(path, weights_only=True))

    first, second = found
    assert {name for name in first if not torch.equal(first[name], second[name])} == {"fc.weight", "fc.bias"}


def test_only_blocks_without_trainable_parameters_are_in_evaluation_mode():
    block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), StochasticDepth(0.5, "row"))
    model = nn.Sequential(block, nn.Flatten(), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)))
    select_trainable(model, "head", "2.1")
    set_training_mode(model)
    assert not any(module.training for module in block.modules())
    assert model.get_submodule("2.0").training  # the dropout before the head
    model.requires_grad_(True)
    set_training_mode(model)
    assert all(module.training for module in model.modules())


# averaged weights


def test_the_decay_is_small_in_the_first_steps():
    assert [ema_decay_of(step, 0.99) for step in (0, 1, 90, 10_000)] == [0.1, 2 / 11, 0.91, 0.99]


def test_averaged_weights_are_those_of_an_explicit_computation_after_every_step():
    config, split = replace(CONFIG, ema_decay=0.45, lr=0.1), examples(20)
    state = begin_training(small_network(), config, CPU, head=HEAD)
    assert state.averaged is not None
    expected = {name: value.double() for name, value in state.model.state_dict().items()}
    decays = iter((0.1, 2 / 11, 0.25, 4 / 13, 5 / 14, 0.4, 7 / 16, 0.45, 0.45))

    def recompute() -> None:
        decay = next(decays)
        for name, value in state.model.state_dict().items():
            is_copied = "num_batches" in name
            expected[name] = value.double() if is_copied else decay * expected[name] + (1 - decay) * value

    for epoch in (1, 2, 3):  # of three steps
        train_epoch(state, split, plan_for(split, config, epoch=epoch), config, after_step=recompute)
        state.finish_epoch(record(epoch))

    found = state.averaged.state_dict()
    assert found["1.num_batches_tracked"].item() == 9  # copied
    assert "1.running_var" in found
    for name, value in found.items():
        assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(found["1.running_mean"], state.model.state_dict()["1.running_mean"])
    assert not any(module.training for module in state.averaged.modules())


def test_the_averaged_model_is_validated_saved_and_evaluated(tmp_path):
    model, config = small_network(), replace(CONFIG, epochs=2, ema_decay=0.9, lr=0.1)
    paths, result = train(tmp_path, config, model=model)

    saved = load_checkpoint(paths)
    assert saved is not None
    found = validate(model, examples(10), precision="fp32")  # of the last step's weights
    assert found.loss != result.history[-1].val_loss
    averaged = small_network()
    averaged.load_state_dict(saved["averaged"])
    assert validate(averaged, examples(10), precision="fp32").loss == result.history[-1].val_loss

    load_best_weights(model, paths.best_model)  # as before the evaluation
    found = validate(model, examples(10), precision="fp32")
    assert (found.loss, found.accuracy) == (result.best.val_loss, result.best.val_accuracy)


# resuming


class Random(nn.Module):
    """A network that draws random numbers in training."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.stem, self.norm, _, _, self.head = small_network(seed).children()
        self.depth, self.dropout = StochasticDepth(0.5, "row"), nn.Dropout(0.5)

    def forward(self, images):
        features = self.stem(images)
        features = features + self.depth(self.norm(features).relu())
        return self.head(self.dropout(features.flatten(1)))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return train(tmp_path_factory.mktemp("uninterrupted"), FULL_CONFIG, model=Random())[0]


@pytest.mark.parametrize("seed", range(6))
def test_a_training_with_everything_on_resumes_to_the_same_bits_from_any_steps(tmp_path, uninterrupted, seed):
    rng = random.Random(seed)
    config, number = replace(FULL_CONFIG, checkpoint_every=rng.choice([0, NEVER])), 0
    while True:
        stop, resume = StopAfter(rng.randint(1, 5)), number > 0
        number += 1
        torch.manual_seed(number)  # what the process drew before must not matter
        try:
            paths, _ = train(tmp_path, config, model=Random(seed=number if resume else 0), stop=stop, resume=resume)
        except Interrupted:
            continue
        break
    assert number > 2
    assert outcome(paths) == outcome(uninterrupted)


def test_random_layers_draw_by_the_seed_and_the_step_and_not_by_the_state_of_the_process(tmp_path):
    config = replace(CONFIG, epochs=1)
    torch.manual_seed(1)
    first, _ = train(tmp_path / "first", config, model=Random())
    torch.manual_seed(2)
    second, _ = train(tmp_path / "second", config, model=Random())
    other, _ = train(tmp_path / "other", replace(config, seed=43), model=Random())
    assert outcome(first) == outcome(second)
    assert outcome(first) != outcome(other)


def test_a_finished_training_keeps_its_averaged_weights_as_the_best_when_it_is_resumed(tmp_path):
    config = replace(CONFIG, epochs=1, ema_decay=0.9)
    paths, _ = train(tmp_path, config)
    before = outcome(paths)
    train(tmp_path, config, resume=True)
    assert outcome(paths) == before


def test_a_checkpoint_of_the_format_before_averaged_weights_is_refused(tmp_path):
    paths, _ = train(tmp_path)
    content = load_checkpoint(paths)
    assert content is not None
    old = {name: value for name, value in content.items() if name not in ("averaged", "format_version")}
    checkpoint.save_checkpoint(paths, old | {"format_version": 2})
    with pytest.raises(DataError, match=r"is of format 2, and this version of the program reads 3: continue with"):
        load_checkpoint(paths)


def test_a_checkpoint_without_averages_does_not_fit_a_training_with_them(tmp_path):
    paths, _ = train(tmp_path)
    state = begin_training(small_network(), replace(CONFIG, ema_decay=0.9), CPU, head=HEAD)
    saved = load_checkpoint(paths)
    assert saved is not None
    with pytest.raises(DataError, match="does not fit this version of the program"):
        restore(state, saved, saved["provenance"], paths)


def sizes_of_tensors(value: object) -> dict[int, int]:
    """Number of elements of each different tensor in a checkpoint, by its address."""
    if isinstance(value, torch.Tensor):
        return {value.data_ptr(): value.numel()}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {address: size for item in items for address, size in sizes_of_tensors(item).items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_space_that_is_required_counts_moments_and_averages(tmp_path, monkeypatch, optimizer, ema_decay):
    config = replace(CONFIG, optimizer=optimizer, ema_decay=ema_decay, checkpoint_every=0)
    with pytest.raises(Interrupted):
        train(tmp_path, config, stop=StopAfter(6))  # the best weights differ from the current ones
    (path,) = tmp_path.rglob("last_checkpoint.pth")
    content = torch.load(path, weights_only=True)
    model_size = sum(value.numel() for value in small_network().state_dict().values())
    copies = sum(sizes_of_tensors(content).values()) / model_size
    assert stored_copies(config) == 1 + 3 * round(copies)
    with pytest.raises(StorageError, match=f"reports need {stored_copies(config)},0"):
        require_space(tmp_path, 10**15, config)
