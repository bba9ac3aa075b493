"""The sweeper and the launcher as Hydra finds them: it loads this package at each start, and requires its name."""

from lenet.sweeps import grid, launcher


class Grid(grid.GridSweeper):
    """hydra/sweeper=grid"""


class Local(launcher.ProcessLauncher):
    """hydra/launcher=local"""
