"""The parts of tools/leaderboard.py: finding and reading runs, and the page that lists them."""
