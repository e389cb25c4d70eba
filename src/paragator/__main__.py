"""`python -m paragator`."""

from paragator.cli.main import main

if __name__ == "__main__":
    main()
