import torch

from lenet.drawing import images, matrix_text, side_by_side


def test_a_matrix_is_aligned() -> None:
    assert matrix_text(torch.tensor([[1.0, -20.0], [300.0, 4.0]])) == "  1 -20\n300   4"


def test_matrices_stand_side_by_side_under_their_names() -> None:
    text = side_by_side({"long name": torch.ones(1, 2), "B": torch.zeros(2, 1)})
    assert text == "long name   B\n1 1         0\n            0"


def test_a_picture_has_a_plane_for_each_name() -> None:
    figure = images({str(n): torch.rand(3, 4) for n in range(7)}, per_row=4)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["0", "1", "2", "3", "4", "5", "6", ""]
