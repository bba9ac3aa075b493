import pytest
import torch
from torch import Tensor, nn

from lenet.models import LeNet, multiply_adds, stages, table


def test_multiply_adds_of_lenet() -> None:
    assert multiply_adds(stages(LeNet())) == (416_520, 1_131_960)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(1, 1, 5), nn.AvgPool2d(2), nn.Conv2d(1, 1, 3), nn.AvgPool2d(2)),
        nn.Sequential(nn.Conv2d(1, 1, (3, 2), stride=(1, 2)), nn.Conv2d(1, 1, (2, 3), dilation=(2, 1))),
        nn.Sequential(nn.Conv2d(1, 1, 3, stride=2, dilation=2), nn.Sigmoid(), nn.AvgPool2d((2, 3), stride=1)),
    ],
    ids=["lenet-like", "unequal sides", "stride and dilation"],
)
def test_receptive_field_is_where_the_gradient_arrives(net: nn.Sequential) -> None:
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    image = torch.zeros(1, 1, 28, 28, requires_grad=True)
    net(image)[0, 0, 2, 2].backward()
    assert image.grad is not None
    rows, columns = torch.nonzero(image.grad[0, 0], as_tuple=True)
    touched = (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1)
    assert stages(net)[-1].receptive_field == touched


def test_table_has_a_line_for_each_stage_and_the_totals() -> None:
    lines = table(stages(LeNet())).splitlines()
    assert [line.split()[0] for line in lines[1:13]] == [name for name, _ in LeNet().named_children()]
    assert lines[13].split() == ["total", "61,706", "416,520"]
    assert "1,131,960" in lines[14]


class Residual(nn.Module):
    """No sequence: the convolution's output is added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images + self.conv(images))
        return logits


class Recurrent(nn.Module):
    """A layer that returns a tuple, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.mix = nn.LSTM(28, 10, batch_first=True), nn.Linear(10, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.mix(self.mix(self.rows(images[:, 0])[0][:, -1]))
        return logits


def test_layers_that_return_tuples_or_are_used_twice_are_counted_once() -> None:
    net = Recurrent()
    rows = stages(net)
    assert [(row.name, row.output_shape) for row in rows] == [("rows", ()), ("mix", (10,)), ("mix", (10,))]
    assert sum(row.parameters for row in rows) == sum(parameter.numel() for parameter in net.parameters())
    assert multiply_adds(rows)[0] == 2 * 100


def test_a_network_that_is_no_sequence_has_a_table_without_receptive_fields() -> None:
    rows = stages(Residual(), (3, 8, 8))
    assert [(row.name, row.output_shape, row.receptive_field) for row in rows] == [
        ("conv", (3, 8, 8), None),
        ("head.0", (192,), None),
        ("head.1", (5,), None),
    ]
    assert multiply_adds(rows)[0] == 64 * 3 * 27 + 192 * 5
    assert len(table(rows).splitlines()) == 6
