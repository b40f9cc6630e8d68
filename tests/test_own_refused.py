"""What a search over a network and data of one's own refuses, in a sentence each."""

import pytest
import torch
from torch import Tensor, nn

import nni_blockswap as bs
from nni_blockswap.errors import BlockSwapError
from nni_blockswap.scoring.proxies import make_proxy
from nni_blockswap.tasks.loader import LoaderTask, LossTask
from tests.test_own import EXAMPLE, IMAGES, LABELS, QUICK, loader, network


@pytest.mark.parametrize(
    ("data", "settings", "sentence"),
    [
        (3, {}, "data is a DataLoader, a Dataset, or batches"),
        (iter([(IMAGES, LABELS)]), {}, "batches .* that can be iterated again"),
        ([IMAGES], {}, "a batch is .images .N, C, H, W., labels."),
        ([(IMAGES[0], LABELS)], {}, "a batch is .images .N, C, H, W., labels."),
        ([(IMAGES[:3], LABELS[:3])], {}, "the loader has 3: lower batch_size"),
        ([(IMAGES, LABELS)], {"sample": 3}, "a search has no setting 'sample'"),
        ([(IMAGES, LABELS)], {"budget": "a lot"}, "'a lot' is not a budget"),
        ([(IMAGES.repeat(1, 3, 1, 1), LABELS)], {}, "images of 1x8x8 and loader has 3x8x8"),
        ([(IMAGES, LABELS[:-1])], {}, "a batch has a label an image; one of data has 40 images and labels of shape"),
        ([(IMAGES, LABELS.float())], {}, "labels are torch.float32, and cross-entropy takes classes; give a loss"),
        ([(IMAGES, LABELS + 4)], {}, "loader has 7 classes and the network 3"),
        ([(IMAGES, LABELS)], {"loss": lambda outputs, labels: outputs}, "a scalar tensor"),
        (
            LoaderTask([(IMAGES, LABELS)]),
            {"loss": lambda outputs, labels: outputs},
            "the task loader has a loss already",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(data: object, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(BlockSwapError, match=sentence):
        bs.search(bs.swap_blocks(network(), EXAMPLE), data, **{"budget": "70%", **QUICK, **settings})


class Named(nn.Module):
    """Answers with a dictionary, as segmentation networks do; in training mode alone, if asked to."""

    def __init__(self, training_alone: bool = False) -> None:
        super().__init__()
        self.inner, self.training_alone = network(), training_alone

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        outputs: Tensor = self.inner(images)
        return {"out": outputs} if self.training or not self.training_alone else outputs


@pytest.mark.parametrize("training_alone", [False, True])
def test_answers_that_are_no_tensor_need_a_loss_of_ones_own(training_alone: bool) -> None:
    space = bs.swap_blocks(Named(training_alone), EXAMPLE)
    with pytest.raises(BlockSwapError, match="the network answers with a dict, and cross-entropy takes a tensor; give"):
        bs.search(space, loader(), budget="70%", **QUICK)
    own = bs.search(space, loader(), budget="70%", loss=lambda out, labels: out["out"].square().mean(), **QUICK)
    assert len(list(own)) == 5


@pytest.mark.parametrize("proxy", ["accuracy", "synflow"])
def test_a_proxy_of_one_tensor_tells_so(proxy: str) -> None:
    space = bs.swap_blocks(Named(), EXAMPLE)
    with pytest.raises(BlockSwapError, match=f"the proxy '{proxy}' needs a network that answers with one tensor, and"):
        bs.search(space, loader(), budget="70%", loss=lambda out, _: out["out"].square().mean(), proxy=proxy, **QUICK)


def test_accuracy_takes_shares_of_classes_and_tells_what_it_cannot_compare() -> None:
    space, soft = bs.swap_blocks(network(), EXAMPLE), nn.functional.one_hot(LABELS).double()
    hard = bs.search(space, [(IMAGES, LABELS)], budget="70%", proxy="accuracy", **QUICK)
    mixed = bs.search(space, [(IMAGES, soft)], budget="70%", proxy="accuracy", **QUICK)
    assert {one.id: one.score for one in mixed} == {one.id: one.score for one in hard}
    scaled = [(IMAGES, soft[:, :2])]
    with pytest.raises(
        BlockSwapError, match=r"compares answers \(16, 3\) with a class for each, and labels are \(16, 2"
    ):
        bs.search(space, scaled, budget="70%", proxy="accuracy", loss=lambda out, _: out.square().mean(), **QUICK)


@pytest.mark.parametrize("answers", [torch.zeros(16), torch.zeros(16, 1)])
@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
def test_one_number_an_image_has_no_accuracy(answers: Tensor, kind: torch.dtype) -> None:
    """Of one column the largest is always the first: every network would be as good."""
    batch = IMAGES[:16], torch.ones_like(answers).to(kind)
    task = LossTask([batch], lambda outputs, labels: outputs.mean())
    assert task.training_figures(answers, batch[1]) == {}
    with pytest.raises(BlockSwapError, match=r"the proxy 'accuracy' compares answers \(16.* and labels are \(16"):
        make_proxy("accuracy").measure(lambda images: answers, task, batch)  # type: ignore[arg-type]


def test_a_network_that_runs_in_eval_mode_alone_is_told() -> None:
    class Untrainable(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("no targets")
            return super().forward(images)  # type: ignore[no-any-return]

    space = bs.swap_blocks(Untrainable(*network()), EXAMPLE)
    with pytest.raises(BlockSwapError, match="runs in eval mode and not in training mode: no targets"):
        bs.search(space, loader(), budget="70%", **QUICK)


def test_a_network_of_two_inputs_is_told() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, images: Tensor, scale: Tensor) -> Tensor:
            outputs: Tensor = self.inner(images * scale)
            return outputs

    space = bs.swap_blocks(Scaled(), (EXAMPLE, torch.ones(1)))
    with pytest.raises(BlockSwapError, match="takes 2 inputs, and a search has images alone for it; wrap it in"):
        bs.search(space, loader(), budget="70%", **QUICK)


def test_a_module_is_no_space() -> None:
    with pytest.raises(BlockSwapError, match="a search takes a space, as swap_blocks makes one, not a Sequential"):
        bs.search(network(), loader(), budget="70%")
