"""``python -m mmulab``: the command line."""

from mmulab.cli.main import main

if __name__ == "__main__":
    main()
