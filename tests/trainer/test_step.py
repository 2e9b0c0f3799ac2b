"""One step, one epoch and one validation, with models small enough to check explicitly."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from scripts.core.config import Config
from scripts.data_handler.dataset import Split
from scripts.data_handler.plan import Mix
from scripts.data_handler.sources import DeviceSplit, make_device_split
from scripts.data_handler.tasks import MULTI_LABEL_TASK
from scripts.models.factory import new_model
from scripts.trainer import step
from scripts.trainer.fit import begin_training
from scripts.trainer.optimisation import make_schedule
from scripts.trainer.state import EarlyStopping, TrainingState
from scripts.trainer.step import mix, train_epoch, training_step, validate
from tests.conftest import coloured_squares
from tests.trainer.toys import plan_for, record

CONFIG = Config(seed=1, batch_size=8, lr=0.05, schedule="constant", momentum=0.0, mixup_alpha=0.0, precision="fp32")
CPU, META = torch.device("cpu"), torch.device("meta")


def two_layers(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5), nn.ReLU(), nn.Linear(5, 2))


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    return TrainingState(model, optimizer, EarlyStopping(5), torch.zeros(()))


def squares(count: int = 20, channels: int = 3) -> DeviceSplit:
    images, labels = coloured_squares(count, side=4, channels=channels)
    split = Split(images, labels[:, 0].astype(np.int64))
    return make_device_split(split, 2, feed="resident", device=CPU, num_workers=0)


def test_a_step_is_one_step_down_the_gradient_of_the_cross_entropy():
    model, reference = two_layers(), two_layers()
    images, targets = torch.rand(6, 3, 4, 4), F.one_hot(torch.arange(6) % 2, 2).float()

    loss = training_step(model, torch.optim.SGD(model.parameters(), lr=0.1), images, targets)

    expected = -(targets * reference(images).log_softmax(1)).sum(1).mean()
    expected.backward()
    assert_close(loss, expected.detach())
    for stepped, before in zip(model.parameters(), reference.parameters(), strict=True):
        assert before.grad is not None
        assert_close(stepped, before - 0.1 * before.grad)


def test_a_mixed_target_gives_the_mixed_loss():
    model = two_layers()
    images = torch.rand(2, 3, 4, 4)
    first, second, blend = (torch.tensor([row, row]) for row in ([1.0, 0.0], [0.0, 1.0], [0.3, 0.7]))

    losses = [
        training_step(model, torch.optim.SGD(model.parameters(), lr=0.0), images, targets)
        for targets in (first, second, blend)
    ]

    assert_close(losses[2], 0.3 * losses[0] + 0.7 * losses[1])


def test_bf16_computes_nearly_the_same_and_keeps_fp32_weights():
    model, reference = two_layers(), two_layers()
    images, targets = torch.rand(6, 3, 4, 4), F.one_hot(torch.arange(6) % 2, 2).float()

    coarse = training_step(model, torch.optim.SGD(model.parameters(), lr=0.1), images, targets, precision="bf16")
    exact = training_step(reference, torch.optim.SGD(reference.parameters(), lr=0.1), images, targets)

    assert coarse != exact
    assert_close(coarse, exact, rtol=0.02, atol=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_mixing_blends_every_image_and_target_with_its_partners():
    images = torch.tensor([0.0, 10.0]).view(2, 1, 1, 1)
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    mixed_images, mixed_targets = mix(images, targets, torch.tensor([1, 0]), Mix(0.75))

    assert mixed_images.flatten().tolist() == [2.5, 7.5]
    assert mixed_targets.tolist() == [[0.75, 0.25], [0.25, 0.75]]


def test_cutmix_takes_the_box_from_the_partner_and_its_share_of_the_target():
    images, partner = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5), torch.tensor([1, 0])
    before, how = images.clone(), Mix(1 - 6 / 20, (1, 3, 2, 5))

    mixed, targets = mix(images, torch.eye(2), partner, how)

    box = torch.zeros(4, 5, dtype=torch.bool)
    box[1:3, 2:5] = True
    assert torch.equal(mixed[:, :, box], before[partner][:, :, box])
    assert torch.equal(mixed[:, :, ~box], before[:, :, ~box])
    assert_close(targets, torch.tensor([[0.7, 0.3], [0.3, 0.7]]))
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_training_lowers_the_loss_and_raises_the_accuracy(channels, alpha):
    model, examples = two_layers(), squares(channels=channels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = validate(model, examples, precision="fp32").loss

    config = replace(CONFIG, mixup_alpha=alpha)
    for epoch in range(1, 9):
        train_epoch(state_of(model, optimizer), examples, plan_for(examples, config, epoch=epoch), config)
    after, accuracy, _ = validate(model, examples, precision="fp32")

    assert after < before / 2
    assert accuracy == 1.0


def test_an_epoch_sets_the_rates_of_every_step_of_the_training_and_reports_the_mean_loss_of_the_images():
    class Recorder(torch.optim.SGD):
        rates: tuple[tuple[float, float], ...] = ()

        def step(self, closure=None):
            (group,) = self.param_groups
            self.rates += ((group["lr"], group["momentum"]),)
            group["lr"] = 0.0

    model, examples, ticks = two_layers(), squares(20), []
    config = replace(CONFIG, epochs=2, schedule="onecycle", momentum=0.9)
    expected = [make_schedule(config, 6)(step) for step in range(6)]
    for epoch in (1, 2):
        optimizer = Recorder(model.parameters(), lr=9.0, momentum=0.5)
        state = state_of(model, optimizer)
        state.history = [record()] * (epoch - 1)
        mean_loss = train_epoch(state, examples, plan_for(examples, config), config, after_step=lambda: ticks.append(1))
        assert optimizer.rates == tuple(expected[3 * epoch - 3 : 3 * epoch])  # 20 images are 8 + 8 + 4

    assert len(ticks) == 6
    # the weights never moved, so the jittered images' loss stays near that of the plain ones
    assert mean_loss == pytest.approx(validate(model, examples, precision="fp32")[0], abs=0.15)


def test_an_epoch_clips_gradients_and_computes_in_the_precision_of_its_settings():
    examples, config = squares(20), replace(CONFIG, lr=1.0, weight_decay=0.0)
    losses, moved = [], []
    for settings in (config, replace(config, grad_clip=1e-6), replace(config, precision="bf16")):
        state = begin_training(two_layers(), settings, CPU, head="3")
        losses.append(train_epoch(state, examples, plan_for(examples, settings), settings))
        before, after = two_layers().state_dict(), state.model.state_dict()
        moved.append(max(float((after[name] - before[name]).abs().max()) for name in before))

    assert moved[1] <= 3e-6 < moved[0]  # three steps
    assert losses[2] not in losses[:2]


def test_validation_counts_right_answers_and_averages_over_images():
    class ConstantModel(nn.Module):
        def forward(self, images):
            return torch.tensor([[math.log(3.0), 0.0]]).expand(len(images), 2)

    images, _ = coloured_squares(300, side=4)
    split = Split(images, (np.arange(300) >= 225).astype(np.int64))  # three quarters are class 0
    examples = make_device_split(split, 2, feed="resident", device=CPU, num_workers=0)

    loss, accuracy, _ = validate(ConstantModel(), examples, precision="fp32")

    assert accuracy == 0.75
    # its probabilities are 3/4 for class 0 and 1/4 for class 1
    assert loss == pytest.approx(-(0.75 * math.log(3 / 4) + 0.25 * math.log(1 / 4)), rel=1e-5)


class RecordedAuc:
    """An AUC function that keeps what it is given."""

    given: tuple[np.ndarray, ...] = ()

    def __call__(self, *given: np.ndarray) -> float:
        self.given = given
        return 0.25


def test_validation_hands_labels_and_probabilities_of_all_images_to_the_auc():
    examples, recorded_auc = replace(squares(20), eval_batch_size=8), RecordedAuc()
    found = validate(two_layers(), examples, precision="fp32", auc=recorded_auc)

    labels, probabilities = recorded_auc.given
    assert found.auc == 0.25
    assert labels.tolist() == [0, 1] * 10
    assert probabilities.shape == (20, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    # the accuracy is theirs, too
    assert found.accuracy == (probabilities.argmax(axis=1) == labels).mean()


def test_validation_hands_rows_of_labels_to_the_auc_where_images_have_several():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, recorded_auc = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 3)), RecordedAuc()
    validate(model, label_rows(20), precision="fp32", auc=recorded_auc)

    labels, probabilities = recorded_auc.given
    assert labels.dtype.kind == "i"
    assert labels.tolist() == [[number % 2, 1, 0] for number in range(20)]
    assert probabilities.shape == (20, 3)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


def test_validation_without_an_auc_has_none():
    assert validate(two_layers(), squares(), precision="fp32").auc is None


def label_rows(count: int = 20) -> DeviceSplit:
    """Bright images have the first label, all have the second, none the third."""
    images, labels = coloured_squares(count, side=4)
    rows = np.concatenate([labels, np.ones_like(labels), np.zeros_like(labels)], axis=1).astype(np.int64)
    return make_device_split(Split(images, rows), 3, feed="resident", device=CPU, num_workers=0)


def test_a_multi_label_step_is_one_step_down_the_gradient_of_the_binary_cross_entropies():
    model, reference = two_layers(), two_layers()
    images, targets = torch.rand(6, 3, 4, 4), torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.25, 1.0]]).repeat(2, 1)

    loss = training_step(
        model, torch.optim.SGD(model.parameters(), lr=0.1), images, targets, losses=MULTI_LABEL_TASK.losses
    )

    given = reference(images).sigmoid()
    expected = -(targets * given.log() + (1 - targets) * (1 - given).log()).mean()
    expected.backward()
    assert_close(loss, expected.detach())
    for stepped, before in zip(model.parameters(), reference.parameters(), strict=True):
        assert before.grad is not None
        assert_close(stepped, before - 0.1 * before.grad)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_training_learns_several_labels_at_once(alpha):
    examples = label_rows()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = validate(model, examples, precision="fp32").loss

    config = replace(CONFIG, mixup_alpha=alpha)
    for epoch in range(1, 41):
        train_epoch(state_of(model, optimizer), examples, plan_for(examples, config, epoch=epoch), config)
    after, accuracy, _ = validate(model, examples, precision="fp32")

    assert after < before / 2
    assert accuracy == 1.0


def test_the_validation_accuracy_of_several_labels_is_the_mean_of_theirs():
    class ConstantModel(nn.Module):
        def forward(self, images):
            return torch.tensor([[math.log(3.0), 1e-9, -1.0]]).expand(len(images), 3)

    images, _ = coloured_squares(300, side=4)
    rows = np.zeros((300, 3), dtype=np.int64)
    rows[:225, 0] = rows[:60, 1] = rows[:30, 2] = 1
    examples = make_device_split(Split(images, rows), 3, feed="resident", device=CPU, num_workers=0)

    loss, accuracy, _ = validate(ConstantModel(), examples, precision="fp32")

    # it predicts yes, no \(a half is no\) and no: right for 225, 240 and 270 images
    assert accuracy == (225 + 240 + 270) / 900
    first = -(0.75 * math.log(3 / 4) + 0.25 * math.log(1 / 4))
    third = -(0.1 * math.log(1 / (1 + math.e)) + 0.9 * math.log(math.e / (1 + math.e)))
    assert loss == pytest.approx((first + math.log(2) + third) / 3, rel=1e-5)


# with everything that a step may do
FULL_CONFIG = replace(
    CONFIG,
    epochs=2,
    schedule="onecycle",
    momentum=0.9,
    decay_params="weights",
    label_smoothing=0.1,
    class_weights="balanced",
    ema_decay=0.9,
    grad_clip=1.0,
    mixup_alpha=0.4,
)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_host_never_waits_for_the_device_within_an_epoch(optimizer):
    config = replace(FULL_CONFIG, optimizer=optimizer, precision="bf16")
    device = torch.device("cuda", 0)
    images, labels = coloured_squares(64, side=4)
    split = Split(images, labels[:, 0].astype(np.int64))
    examples = make_device_split(split, 2, feed="resident", device=device, num_workers=0)
    state = begin_training(two_layers().to(device), config, device, head="3")

    def forbid_waiting() -> None:  # from the first step's end on: what is made once is there by then
        torch.cuda.set_sync_debug_mode("error" if state.steps_done < 8 else "default")

    plan = plan_for(examples, config)
    try:
        train_epoch(state, examples, plan, config, after_step=forbid_waiting)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.steps_done == 8


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> DeviceSplit:
    """A split on the meta device, whose tensors have shapes but no values: reading one there is an error."""
    monkeypatch.setattr(step, "autocast", lambda device, precision: nullcontext())  # it knows no such device
    images, labels = coloured_squares(64, side=12)
    split = Split(images, labels[:, 0].astype(np.int64))
    return make_device_split(split, 2, feed="resident", device=META, num_workers=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("train_layers", ["all", "head"])
def test_no_value_is_read_from_the_device_before_an_epoch_ends(on_meta: DeviceSplit, optimizer, train_layers):
    config = replace(FULL_CONFIG, optimizer=optimizer, train_layers=train_layers)
    state = begin_training(new_model("resnet18", 2, seed=0).to(META), config, META, head="fc")
    with pytest.raises(RuntimeError, match="meta"):  # by the mean loss, which is read when all steps are done
        train_epoch(state, on_meta, plan_for(on_meta, config), config)
    assert state.steps_done == 8


def test_no_value_is_read_from_the_device_before_a_validation_ends(on_meta: DeviceSplit):
    done: list[None] = []
    examples = replace(on_meta, eval_batch_size=16)
    with pytest.raises(RuntimeError, match="meta"):
        validate(
            new_model("resnet18", 2, seed=0).to(META), examples, precision="fp32", after_batch=lambda: done.append(None)
        )
    assert len(done) == 4


def seen_inputs(model: nn.Module) -> list[torch.Tensor]:
    """The inputs that a model is given from now on."""
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _model, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def test_erased_boxes_and_the_splits_statistics_reach_the_network():
    examples = replace(squares(), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    config = replace(CONFIG, batch_size=8, erasing=1.0, hflip=0.0, rotation_angle=0, jitter_val=0.0, mixup_alpha=0.0)
    model = two_layers()
    seen, plan = seen_inputs(model), plan_for(examples, config)
    state = begin_training(model, config, torch.device("cpu"), head="2")
    train_epoch(state, examples, plan, config)
    validate(model, examples, precision="fp32")

    (stored,) = examples.source.batches(np.arange(examples.size), examples.size)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (examples.mean, examples.std))
    normal = (stored.permute(0, 3, 1, 2) / 255 - mean) / std
    steps = -(-examples.size // 8)
    trained, validated = torch.cat(seen[:steps]), torch.cat(seen[steps:])
    assert_close(validated, normal)
    erased, expected = (trained == 0).all(dim=1), normal[torch.from_numpy(plan.order)]
    assert bool(erased.flatten(1).any(dim=1).all())
    assert_close(trained, expected.masked_fill(erased.unsqueeze(1), 0))
