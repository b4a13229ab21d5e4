"""`python -m adapterhub`."""

from adapterhub.cli import main

if __name__ == "__main__":
    main(prog_name="adapterhub")
