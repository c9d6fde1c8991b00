"""Second derivatives as LeNet-5's paper takes them, against its sums and against exact ones."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import Tahoe
from run_results import figures, weights
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev
from torch.nn import functional as F
from torch.testing import assert_close

import models
from orchestrator.config.parse import ConfigError
from orchestrator.config.recipe import Recipe
from orchestrator.run.rundir import RunDir
from orchestrator.training.optim.diagonal_lm import DiagonalLM
from orchestrator.training.optim.factory import make_optimizer
from orchestrator.training.step.diagonal_hessian import diagonal_hessian
from orchestrator.training.task.losses import (
    ClassificationTask,
    MapCrossEntropy,
    make_objective,
)

CROSS_ENTROPY = ClassificationTask(nn.CrossEntropyLoss(), 0.3)


def hessian_diagonal(
    network: nn.Module, images: Tensor, labels: Tensor, objective: Any
) -> dict[str, Tensor]:
    named = dict(network.named_parameters())
    values = diagonal_hessian(network, objective, images, labels, [*named.values()])
    return dict(zip(named, values, strict=True))


def test_hessian_diagonal_of_one_layer_is_exact() -> None:
    """Where nothing lies between weights and loss there is nothing to leave out."""
    torch.manual_seed(0)
    network = nn.Linear(5, 4)
    images, labels = torch.randn(6, 5), torch.arange(6) % 4
    ours = hessian_diagonal(network, images, labels, CROSS_ENTROPY)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        logits = functional_call(network, parameters, (images,))
        return F.cross_entropy(logits, labels, reduction="sum")

    exact = jacrev(grad(loss))({name: p.detach() for name, p in network.named_parameters()})
    for name, value in ours.items():
        diagonal = exact[name][name].reshape(value.numel(), -1).diagonal().view_as(value)
        assert_close(value, diagonal)


def test_hessian_diagonal_of_two_layers_follows_equations_25_and_27() -> None:
    """Equations 25 and 27, written out: h of a unit is f'(a)^2 times the sum of u^2 h."""
    torch.manual_seed(1)
    first, last = nn.Linear(5, 7), nn.Linear(7, 4)
    network = nn.Sequential(first, nn.Tanh(), last)
    images, labels = torch.randn(3, 5), torch.tensor([0, 2, 3])
    ours = hessian_diagonal(network, images, labels, CROSS_ENTROPY)
    expected = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    with torch.no_grad():
        for x in images:
            y = first(x).tanh()
            p = last(y).softmax(0)
            h_out = p * (1 - p)
            h_hidden = torch.tensor(
                [
                    (1 - y[j] ** 2) ** 2 * sum(last.weight[i, j] ** 2 * h_out[i] for i in range(4))
                    for j in range(7)
                ]
            )
            for i, j in itertools.product(range(4), range(7)):
                expected["2.weight"][i, j] += h_out[i] * y[j] ** 2
            for i, j in itertools.product(range(7), range(5)):
                expected["0.weight"][i, j] += h_hidden[i] * x[j] ** 2
            expected["2.bias"] += h_out
            expected["0.bias"] += h_hidden
    for name, value in ours.items():
        assert_close(value, expected[name])


def test_hessian_diagonal_of_a_shared_weight_sums_over_positions() -> None:
    """Equation 23; a convolution of one place a map is the linear layer of the same weights."""
    torch.manual_seed(2)
    conv = nn.Conv2d(2, 3, 2)
    images = torch.randn(4, 2, 3, 3)
    ours = hessian_diagonal(
        nn.Sequential(conv, nn.Flatten()), images, torch.arange(4), CROSS_ENTROPY
    )
    logits = conv(images).flatten(1)
    p = logits.softmax(1)
    h = (p * (1 - p)).view(4, 3, 2, 2)
    windows = F.unfold(images, 2).square()  # [n, 2 * 2 * 2, places]
    expected = torch.einsum("nmp,nkp->mk", h.flatten(2), windows).view_as(conv.weight)
    assert_close(ours["0.weight"], expected)
    assert_close(ours["0.bias"], h.sum((0, 2, 3)))


def test_layers_called_with_keywords_give_the_same_diagonal() -> None:
    class Named(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, bias=self.bias, stride=self.stride)

    torch.manual_seed(5)
    plain, named = nn.Conv2d(2, 4, 2, stride=2), Named(2, 4, 2, stride=2)
    named.load_state_dict(plain.state_dict())
    images, labels = torch.randn(3, 2, 4, 4), torch.arange(3)
    ours, theirs = (
        hessian_diagonal(nn.Sequential(one, nn.Flatten()), images, labels, CROSS_ENTROPY)
        for one in (named, plain)
    )
    for name, value in theirs.items():
        assert_close(ours[name], value)


def test_head_without_weights_is_differentiated_exactly() -> None:
    """Their second derivative is 2 for each pixel of a bitmap, whatever the distance is."""
    torch.manual_seed(3)
    network = models.build("lenet5_1998", num_classes=10, in_channels=1, head="rbf")
    images, labels = torch.randn(3, 1, 32, 32), torch.tensor([7, 1, 4])
    constant = 80.0
    ours = hessian_diagonal(
        network, images, labels, ClassificationTask(MapCrossEntropy(constant), 0.3)
    )
    with torch.no_grad():
        x = network.forward_features(images)
        bitmaps = network.head.bitmaps
        penalties = torch.cat(
            [(x[:, None] - bitmaps).square().sum(-1), torch.full((3, 1), constant)], 1
        )
        p = (-penalties).softmax(1)[:, :10]
        d = x[:, None] - bitmaps  # and 0 of the class that there is not
        spread = (p[..., None] * d**2).sum(1) - (p[..., None] * d).sum(1) ** 2
        h_x = 2 * (1 - p.sum(1, keepdim=True)) + 4 * spread
        slope = 1.7159 * 2 / 3 * (1 - (x / 1.7159) ** 2)
        assert_close(ours["f6.bias"], (slope**2 * h_x).sum(0))
    assert all(value.min() >= 0 and value.max() > 0 for value in ours.values())
    assert {name: value.shape for name, value in ours.items()} == {
        name: p.shape for name, p in network.named_parameters()
    }


def test_unknown_operation_is_refused() -> None:
    network = nn.Sequential(nn.Linear(5, 4), nn.Sigmoid())
    with pytest.raises(ConfigError) as error:
        hessian_diagonal(network, torch.randn(2, 5), torch.tensor([0, 1]), CROSS_ENTROPY)
    assert error.value.value == "sigmoid"


def test_operation_with_several_outputs_is_refused() -> None:
    class Halved(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).split(2, dim=1)[0]

    with pytest.raises(ConfigError) as error:
        hessian_diagonal(Halved(5, 4), torch.randn(2, 5), torch.tensor([0, 1]), CROSS_ENTROPY)
    assert error.value.value == "split"


def test_layer_without_bias_and_head_without_features() -> None:
    torch.manual_seed(4)
    network = nn.Sequential(nn.Linear(5, 4, bias=False))
    network.head = nn.Identity()  # type: ignore[assignment]
    images, labels = torch.randn(3, 5), torch.tensor([0, 1, 2])
    with torch.no_grad():
        p = network(images).softmax(1)
    expected = torch.einsum("nk,nj->kj", p * (1 - p), images**2)
    assert_close(hessian_diagonal(network, images, labels, CROSS_ENTROPY)["0.weight"], expected)


def test_sdlm_refuses_other_losses(recipe: Recipe) -> None:
    slots = dataclasses.replace(recipe.optimizer, name="sdlm")
    for objective in ("bce", "model"):
        changed = dataclasses.replace(recipe, optimizer=slots, loss=objective)
        with pytest.raises(ConfigError, match=f"loss={objective}"):
            make_objective(changed)


def test_diagonal_lm_divides_by_curvature_plus_damping() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    other = nn.Parameter(torch.tensor([5.0]))
    optimizer = DiagonalLM(
        [weight, other], lr=0.1, momentum=0.0, weight_decay=0.5, damping=0.02, num_samples=1
    )
    optimizer.set_hessian_diagonal([torch.tensor([0.0, 0.08, 0.98]), torch.tensor([0.0])])
    weight.grad, other.grad = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([1.0])
    optimizer.step()
    expected = [1 - 0.1 / 0.02 * 1.5, 2 - 0.1 / 0.1 * 0.0, 3 - 0.1 / 1.0 * 3.5]
    assert_close(weight.detach(), torch.tensor(expected))
    assert_close(other.detach(), torch.tensor([5 - 0.1 / 0.02 * 3.5]))


@pytest.mark.parametrize(
    ("values", "token"),
    [
        ({"momentum": 0.9, "kwargs": {"damping": 0.02, "num_samples": 9}}, "momentum=0.9"),
        ({"momentum": 0.0, "kwargs": {"damping": 0.02}}, "num_samples"),
    ],
)
def test_unfit_options_of_sdlm_are_refused(
    recipe: Recipe, values: dict[str, Any], token: str
) -> None:
    slots = dataclasses.replace(recipe.optimizer, name="sdlm", **values)
    with pytest.raises(ConfigError, match=token):
        make_optimizer(nn.Linear(2, 2), slots)


RUN = (
    *("train", "model=lenet5_1998", "recipe=lenet5_1998", "+model.kwargs.head=rbf"),
    *("tracking=none", "recipe.epochs=2", "recipe.global_batch_size=32"),
    *("recipe.num_micro_batches=2", "recipe.optimizer.kwargs.num_samples=32"),
    *("checkpoint.every_steps=10", "logging.every_steps=1"),
)
LAST = 2 * (1438 // 32)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
def test_resume_within_an_epoch_keeps_the_measured_curvature(digits: Path, tmp_path: Path) -> None:
    tahoe = Tahoe(tmp_path)
    tahoe(*RUN, f"data.url={digits}", "run_dir=whole")
    killed = tahoe.start(*RUN, f"data.url={digits}", "run_dir=killed")
    killed.wait_for("step 58/")  # of the epoch that begins after step 44
    killed.kill_ranks()
    assert killed.finish() == 1
    tahoe("resume", "killed")
    tahoe(*RUN, f"data.url={digits}", "run_dir=two", "launcher.nproc_per_node=2")
    whole, resumed, two = (RunDir(tmp_path / name) for name in ("whole", "killed", "two"))
    assert resumed.num_attempts == 2
    assert weights(resumed, LAST) == weights(whole, LAST)
    ours, theirs = figures(two, "train/loss"), figures(whole, "train/loss")
    for step in range(1, 11):  # the same sums in another order: equal to rounding
        (expected,) = theirs[step, "train/loss"]
        assert ours[step, "train/loss"].pop() == pytest.approx(expected, rel=1e-3)
    (first,), (last,) = theirs[1, "train/loss"], theirs[LAST, "train/loss"]
    assert last < first / 2
