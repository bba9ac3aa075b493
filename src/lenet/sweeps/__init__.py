"""Many runs of one command: grids, the leaderboard, the search."""
