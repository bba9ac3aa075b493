import pytest
import torch
from torch import nn

from lenet.models.lenet import LeNet
from lenet.models.summary import multiply_adds, stages, table


def test_multiply_adds_of_lenet() -> None:
    assert multiply_adds(stages(LeNet())) == (416_520, 1_131_960)


def test_two_stacked_2x2_convolutions_see_3x3() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 2), nn.Conv2d(1, 1, 2))
    assert [row.receptive_field for row in stages(net)] == [(2, 2), (3, 3)]


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


def test_lenet_sees_16x16_before_the_linear_layers_and_everything_after() -> None:
    fields = {row.name: row.receptive_field for row in stages(LeNet())}
    assert fields["pool2"] == (16, 16)
    assert fields["fc1"] == (28, 28)


def test_table_has_a_line_for_each_stage_and_the_totals() -> None:
    lines = table(stages(LeNet())).splitlines()
    assert [line.split()[0] for line in lines[1:13]] == [name for name, _ in LeNet().named_children()]
    assert lines[13].split() == ["total", "61,706", "416,520"]
    assert "1,131,960" in lines[14]
