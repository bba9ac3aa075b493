import numpy as np
import torch

from lenet.monitor.drawing import BLUE, GAP, GREEN, LINE, RED, WHITE, Tile, confusion, images, sheet, side_by_side


def test_matrices_stand_side_by_side_under_their_names() -> None:
    text = side_by_side({"long name": torch.tensor([[1.0, -20.0]]), "B": torch.zeros(2, 1)})
    assert text == "long name   B\n  1 -20     0\n            0"


def test_a_plane_for_each_name_dark_where_it_is_large() -> None:
    planes = {str(n): torch.full((2, 3), n / 6) for n in range(7)}
    planes["6"][0, 0] = 0
    picture = np.asarray(images(planes, width=208, per_row=4).convert("L"))  # each number is 14 pixels wide
    top = GAP + LINE
    assert picture[top, GAP] == 255  # of nothing but zeros
    assert picture[top, GAP + 50] == 0  # the largest of its plane
    below, third = 2 * top + 2 * 14 + GAP, GAP + 2 * 50
    assert picture[below, third] == 255
    assert picture[below + 14, third] == 0
    assert (picture[below:, third + 50 :] == 255).all()  # there is no eighth


def test_signed_planes_are_red_and_blue() -> None:
    picture = images({"": torch.tensor([[1.0, -1.0, 0.0]])}, width=100)
    assert [picture.getpixel((GAP + 28 * n + 5, GAP + LINE + 5)) for n in range(3)] == [RED, BLUE, WHITE]


def test_a_tiles_frame_has_its_colour() -> None:
    plane = np.full((4, 4), 255, np.uint8)
    picture = sheet([Tile("right", plane, GREEN), Tile("two\nlines", plane)], width=116, per_row=2)
    top = GAP + 2 * LINE
    assert picture.getpixel((GAP - 1, top - 1)) == GREEN
    assert picture.getpixel((GAP, top)) == (0, 0, 0)
    assert picture.getpixel((GAP + 54 - 1, top - 1)) not in (GREEN, WHITE)


def test_a_confusion_matrix_is_dark_where_most_images_are() -> None:
    counts = np.array([[90, 10], [0, 100]])
    picture = np.asarray(confusion(counts, ["Bag", "Boot"]).convert("L")).astype(int)
    corners = picture[84 + 1 : 84 + 72 : 36, 84 + 1 : 84 + 72 : 36]  # where no number stands
    assert np.abs(corners - np.array([[25, 229], [255, 0]])).max() <= 2
    assert picture[84 + 36 : 84 + 72, 84 : 84 + 36].min() == 255  # no images, no number
    assert picture[84 : 84 + 36, 84 + 36 : 84 + 72].min() < 50  # a dark number
    assert picture[84 : 84 + 36, 84 : 84 + 36].max() > 200  # a light one


def test_the_multiplication_sign_is_in_the_font() -> None:
    drawn = [images({caption: torch.zeros(1, 1)}, width=100).tobytes() for caption in ("×", "\U0010ffff")]
    assert drawn[0] != drawn[1]
